"""What shared values cost and save: mean cosine to the original's vectors, bytes of the artifact and both packages.

    python benchmarks/sharing.py
    python benchmarks/sharing.py --held-out 30 --calibration 16

Passages of scifact, held out and for calibration apart. The table of docs/methods/simplify.share.md comes from here.
"""

from __future__ import annotations

from zeros import Steps, main

FORMS: dict[str, Steps] = {
    "float32": [],
    **{
        f"{bits} bits, {granularity}": [("simplify.share", {"bits": bits, "granularity": granularity})]
        for granularity in ("tensor", "channel")
        for bits in (3, 4, 5, 8)
    },
    "4 bits, channel, unweighted": [
        ("simplify.share", {"bits": 4, "granularity": "channel", "weighted": False}),
    ],
    "integers of 4 bits, channel": [("quantize.weights_int", {"bits": 4})],
    "integers of 4 bits, groups of 32": [("quantize.weights_int", {"bits": 4, "granularity": "group"})],
    "30 % pruned, then 4 bits, tensor": [
        ("prune.weights", {"ratio": 0.3, "importance": "activation"}),
        ("simplify.share", {"bits": 4}),
    ],
}

if __name__ == "__main__":
    main(FORMS, __doc__)
