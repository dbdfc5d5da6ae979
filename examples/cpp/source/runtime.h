// What runs a bundle.
#pragma once

#include <filesystem>
#include <memory>

#include "bundle.h"
#include "tensor.h"

namespace svit {

class Runtime {
public:
    virtual ~Runtime() = default;

    // Runs one batch. Inputs that the model does not have are left out.
    virtual Tensors run(const Tensors& inputs) = 0;
};

std::unique_ptr<Runtime> open_onnxruntime(const Bundle& bundle);

// plugins: the library that `svit-deploy plugins build` made; empty without one.
std::unique_ptr<Runtime> open_tensorrt(const Bundle& bundle, const std::filesystem::path& plugins);

}  // namespace svit
