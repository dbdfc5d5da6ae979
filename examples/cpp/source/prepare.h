// From a picture to a model's inputs.
#pragma once

#include "bundle.h"
#include "picture.h"
#include "tensor.h"

namespace svit {

// The inputs of a batch that repeats one picture as often as the bundle's smallest batch asks for.
Tensors prepare(const Picture& picture, const Bundle& bundle);

}  // namespace svit
