"""An iteration's parts as programs: C++ libraries on a CPU, CUDA graphs on a GPU."""
