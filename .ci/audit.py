"""Ask the databases of known vulnerabilities about what is installed, and say plainly how many could be asked about.

Exit code 0: none is known of those that were asked about, or no database could be reached, which is said; 1: some are.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SECONDS = 120


def main() -> int:
    """Run pip-audit and count."""
    command = [str(Path(sys.executable).with_name("pip-audit")), "--local", "--format", "json", "--progress-spinner", "off",
               "--timeout", "10"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        found = json.loads(done.stdout)["dependencies"]
    except FileNotFoundError:
        print("audit: not made: pip-audit is not installed; run: pip install 'slimseek[dev]'")
        return 0
    except (subprocess.TimeoutExpired, ValueError) as error:
        print(f"audit: not made: the database of vulnerabilities cannot be reached ({type(error).__name__})")
        return 0
    asked = [one for one in found if "skip_reason" not in one]
    known = [(one["name"], one["version"], fault["id"], fault["fix_versions"]) for one in asked for fault in one["vulns"]]
    if not asked:
        print(f"audit: not made: no database knows any of the {len(found)} packages; is the package index a mirror?")
        return 0
    print(f"audit: {len(asked)} of {len(found)} packages were asked about, {len(known)} vulnerabilities are known of them")
    for name, version, fault, mended in known:
        print(f"    {name} {version}: {fault}; mended in {', '.join(mended) or 'no version yet'}")
    return 1 if known else 0


if __name__ == "__main__":
    sys.exit(main())
