"""sparseprune beside other runtimes: the same pruned networks, weights, inputs and threads.

    make peers                                    every case at every sparsity
    python -m benchmarks.peers --cases resnet --sparsity 0.9

A case is a row of `cases.CASES`, a runtime an entry of `runtimes.PEERS`.
"""
