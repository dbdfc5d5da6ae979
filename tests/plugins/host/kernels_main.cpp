// The kernels on a GPU through their C interface: needs CUDA, no TensorRT.
#include "gpu.h"

int main(int argc, char** argv)
{
    Kernels const kernels{svit_cuda_compact, svit_cuda_gather, svit_cuda_scatter};
    return run(gpu_tests({kernels}), argc > 1 ? argv[1] : nullptr);
}
