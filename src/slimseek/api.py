"""The verbs of the command line as functions, with the same names and arguments.

They stand here and not in the package itself because each verb's module bears the verb's name.
"""

from slimseek.bench import bench
from slimseek.budget.limits import Limits
from slimseek.budget.loop import Effort
from slimseek.choose import choose
from slimseek.choose import model as open_model
from slimseek.data import describe, load
from slimseek.demo import demo
from slimseek.deploy import targets
from slimseek.inspect import inspect
from slimseek.pipeline import compress, evaluate, sensitivity, train
from slimseek.pipeline import deploy_all_on as deploy_all
from slimseek.pipeline import deploy_on as deploy
from slimseek.prove import Options
from slimseek.rebuild import rebuild
from slimseek.report import verdict
from slimseek.report import write as report
from slimseek.search import index
from slimseek.search import open as open_index
from slimseek.sensitivity import Settings as SensitivitySettings
from slimseek.service import serve_on as serve
from slimseek.training.settings import Settings as TrainSettings
from slimseek.training.train import Training
from slimseek.within import compress_within

__all__ = [
    "Effort",
    "Limits",
    "Options",
    "SensitivitySettings",
    "TrainSettings",
    "Training",
    "bench",
    "choose",
    "compress",
    "compress_within",
    "demo",
    "deploy",
    "deploy_all",
    "describe",
    "evaluate",
    "index",
    "inspect",
    "load",
    "open_index",
    "open_model",
    "rebuild",
    "report",
    "sensitivity",
    "serve",
    "targets",
    "train",
    "verdict",
]
