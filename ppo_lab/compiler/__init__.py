"""Compiles the functions of an iteration: C++ libraries on a CPU, CUDA graphs on a GPU."""
