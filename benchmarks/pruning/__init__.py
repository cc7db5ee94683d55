"""Does pruning work as published? Every method on real data, beside the published numbers.

    python -m benchmarks.pruning                     every experiment on scikit-learn's digits
    python -m benchmarks.pruning han snip --seeds 3
    python -m benchmarks.pruning --data FOLDER       MNIST (IDX files) or CIFAR-10 (binary batches)

An experiment is a file with a function that yields the rows of one seed, the published numbers, the
claims to check and a picture; `EXPERIMENTS` in `__main__.py` lists them.
"""
