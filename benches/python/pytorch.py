#!/usr/bin/env python3
"""Times PyTorch's batch norm on the shapes of `compare`, and writes rows of the same CSV.

Optional: needs `pip install torch` (the CPU build). Each number of threads is a process of its own.

    python3 benches/python/pytorch.py --out pytorch.csv
    compare report benches/record/<machine>/<date>.csv pytorch.csv

The outputs are allocated once: training forward and inference through `torch.native_batch_norm.out`, so that
no time goes into fresh pages. Backward has no such form; its dx is allocated by each call, from the allocator's
cache where it has one. It is not the same process as the other libraries': compare on a quiet machine.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import time

# Name: batch, channels, positions. As in benches/src/shapes.rs.
SHAPES = [
    "1x64x112x112", "32x64x112x112", "32x64x56x56", "32x256x56x56", "32x128x28x28", "32x512x28x28",
    "32x256x14x14", "32x1024x14x14", "32x512x7x7", "32x2048x7x7", "32x3x224x224", "16x64x16000",
    "8x24x75x75", "1x8x96x96", "1x16x32x32", "32x512x1x1", "4096x256", "128x1024",
]  # fmt: skip
COLUMNS = [
    "layout", "operation", "shape", "threads", "library", "variant", "median_us", "least_us", "quartiles_us",
    "rounds", "calls", "bytes", "gb_per_s", "workspace_bytes",
]  # fmt: skip
EPSILON = 1e-5


def operations(torch, layout, shape):
    """Names, tensors moved, and calls; each is checked against f64 first."""
    dims = [int(d) for d in shape.split("x")]
    channels = dims[1]
    # One spatial dimension as 1 × so many, for which there is a channels-last format.
    dims = dims if len(dims) != 3 else [dims[0], channels, 1, dims[2]]
    generator = torch.Generator().manual_seed(1)
    form = torch.channels_last if layout == "nhwc" and len(dims) == 4 else torch.contiguous_format

    def tensor():
        return (0.5 + torch.randn(dims, generator=generator)).contiguous(memory_format=form)

    x, dy = tensor(), tensor()
    y = torch.empty_like(x)
    gamma, beta = torch.rand(channels, generator=generator) + 0.5, torch.rand(channels, generator=generator)
    mean, var = torch.zeros(channels), torch.ones(channels)
    saved = [torch.empty(channels), torch.empty(channels)]
    unused = [torch.empty(0), torch.empty(0)]

    def forward():
        torch.native_batch_norm(x, gamma, beta, None, None, True, 0.1, EPSILON, out=(y, *saved))

    def backward():
        return torch.ops.aten.native_batch_norm_backward(
            dy, x, gamma, None, None, saved[0], saved[1], True, EPSILON, [True, True, True]
        )

    def inference():
        torch.native_batch_norm(x, gamma, beta, mean, var, False, 0.1, EPSILON, out=(y, *unused))

    axes = [d for d in range(len(dims)) if d != 1]
    wide = [1, channels] + [1] * (len(dims) - 2)
    centred = x.double() - x.double().mean(axes, keepdim=True)
    normal = centred / (centred.square().mean(axes, keepdim=True) + EPSILON).sqrt()
    scale, shift = gamma.double().reshape(wide), beta.double().reshape(wide)
    forward()
    assert (y - (scale * normal + shift)).abs().max() < 1e-3 and y.is_contiguous(memory_format=form)
    dgamma, dbeta = (dy * normal).mean(axes, keepdim=True), dy.double().mean(axes, keepdim=True)
    right = scale / (centred.square().mean(axes, keepdim=True) + EPSILON).sqrt() * (dy - dbeta - normal * dgamma)
    assert (backward()[0] - right).abs().max() < 1e-3
    inference()
    assert (y - (scale * x / (1 + EPSILON) ** 0.5 + shift)).abs().max() < 1e-3
    forward()
    return [("forward", 2, forward), ("backward", 3, backward), ("inference", 2, inference)], 4 * x.numel()


def measure(threads, rounds, shapes, writer):
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    for layout in ["nhwc", "nchw"]:
        for shape in shapes:
            if layout == "nchw" and shape.count("x") == 1:
                continue
            calls, size = operations(torch, layout, shape)
            times = {name: [] for name, _, _ in calls}
            repeat = {}
            for name, _, call in calls:
                call()
                single = []
                for _ in range(3):
                    start = time.perf_counter()
                    call()
                    single.append(time.perf_counter() - start)
                repeat[name] = max(1, int(2e-3 / min(single)))
            for _ in range(rounds):
                for name, _, call in calls:
                    call()
                    start = time.perf_counter()
                    for _ in range(repeat[name]):
                        call()
                    times[name].append((time.perf_counter() - start) / repeat[name] * 1e6)
            for name, tensors, _ in calls:
                us = sorted(times[name])
                median = statistics.median(us)
                quartiles = us[3 * (len(us) - 1) // 4] - us[(len(us) - 1) // 4]
                speed = tensors * size / median / 1e3
                row = [layout, name, shape, threads, "pytorch", torch.__version__]
                row += [round(v, 4) for v in [median, us[0], quartiles]]
                writer.writerow(row + [rounds, repeat[name], tensors * size, round(speed, 4), 0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,2", help="numbers of threads, with commas between (default: 1,2)")
    parser.add_argument("--rounds", type=int, default=15, help="times of which the median counts (default: 15)")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="shapes, with commas between (default: all)")
    parser.add_argument("--out", default="pytorch.csv", help="the CSV file (default: pytorch.csv)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shapes = options.shapes.split(",")
    if options.child:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        measure(int(options.threads), options.rounds, shapes, writer)
        return
    rows = ",".join(COLUMNS) + "\n"
    for threads in options.threads.split(","):
        command = [sys.executable, __file__, "--child", "--threads", threads, "--rounds", str(options.rounds)]
        command += ["--shapes", options.shapes]
        environment = dict(os.environ, OMP_NUM_THREADS=threads)
        rows += subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    with open(options.out, "w") as file:
        file.write(rows)


if __name__ == "__main__":
    main()
