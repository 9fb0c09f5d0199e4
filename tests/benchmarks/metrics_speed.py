"""How long the figures of an evaluation take, each with its 1,000 bootstraps, floor and interval, on random features.

python tests/benchmarks/metrics_speed.py
OMP_NUM_THREADS=2 python tests/benchmarks/metrics_speed.py --dimensions 1024
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from evaluation import diversity, novelty, quality


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=int, default=2845)
    parser.add_argument("--generated", type=int, default=3000)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[512, 768, 1024])
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args()
    print(f"{args.real:,} real, {args.generated:,} generated, {args.resamples:,} bootstraps, {os.cpu_count()} cores")
    for d in args.dimensions:
        rng = np.random.default_rng(0)
        scale = np.arange(1, d + 1) ** -0.5
        real, generated = (rng.normal(size=(n, d)) * scale for n in (args.real, args.generated))
        split = args.real * 15 // 100
        tasks = {
            "frechet": lambda a=real, b=generated: quality.compare_frechet(a, b, args.resamples),
            "kid": lambda a=real, b=generated: quality.compare_kid(a, b, args.resamples),
            "cmmd": lambda a=real, b=generated: quality.compare_cmmd(a, b, args.resamples),
            "prdc": lambda a=real, b=generated: quality.compare_prdc(a, b, args.resamples),
            "diversity": lambda a=real, b=generated: diversity.compare_diversity(a, b, args.resamples),
            "novelty": lambda a=real, b=generated, s=split: novelty.compare_novelty(a[s:], a[:s], b),
        }
        total, times = time.perf_counter(), {}
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            times[name] = time.perf_counter() - start
        total = time.perf_counter() - total
        print(f"d = {d}: {total:5.1f} s  ", "  ".join(f"{name} {seconds:.1f}" for name, seconds in times.items()))


if __name__ == "__main__":
    main()
