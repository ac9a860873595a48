"""Frozen features: an encoder is not trained further, and a simple classifier says what its layers hold.

Goyal et al. 2019 ("Scaling and Benchmarking Self-Supervised Visual Representation Learning", arXiv
1905.01235), called "the paper" in these modules; "released code" is its fair_self_supervision_benchmark.
"""
