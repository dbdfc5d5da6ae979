// Tests of the kernels on a GPU, however they are reached.
#pragma once

#include "check.h"
#include "svit_kernels.h"

#include <functional>
#include <vector>

struct Kernels
{
    std::function<decltype(svit_cuda_compact)> compact;
    std::function<decltype(svit_cuda_gather)> gather;
    std::function<decltype(svit_cuda_scatter)> scatter;
    int64_t element_bytes = 2;  // rows are a multiple of it
};

Tests gpu_tests(std::vector<Kernels> const& all);
