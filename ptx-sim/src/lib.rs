//! Executes NVIDIA PTX on the CPU, warp by warp, with memory, race and barrier checks.
