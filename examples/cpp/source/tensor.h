// A dense array with its shape, as it goes into a runtime and comes out of one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace svit {

enum class Type { float32, int64, boolean };

inline std::size_t size_of(Type type) {
    return type == Type::float32 ? 4 : type == Type::int64 ? 8 : 1;
}

template <typename T>
struct TypeOf;
template <>
struct TypeOf<float> {
    static constexpr Type value = Type::float32;
};
template <>
struct TypeOf<std::int64_t> {
    static constexpr Type value = Type::int64;
};
template <>
struct TypeOf<bool> {
    static constexpr Type value = Type::boolean;
};

struct Tensor {
    Type type = Type::float32;
    std::vector<std::int64_t> shape;
    std::vector<std::byte> bytes;

    Tensor() = default;

    Tensor(Type type, std::vector<std::int64_t> shape) : type(type), shape(std::move(shape)) {
        bytes.resize(size() * size_of(type));
    }

    Tensor(std::vector<std::int64_t> shape, const std::vector<float>& values)
        : Tensor(Type::float32, std::move(shape)) {
        if (values.size() != size())
            throw std::logic_error("a tensor's values do not fill its shape");
        std::memcpy(bytes.data(), values.data(), bytes.size());
    }

    std::size_t size() const {
        std::size_t product = 1;
        for (const std::int64_t side : shape) product *= static_cast<std::size_t>(side);
        return product;
    }

    template <typename T>
    const T* data() const {
        if (TypeOf<T>::value != type)
            throw std::runtime_error("a tensor has another type than expected");
        return reinterpret_cast<const T*>(bytes.data());
    }
};

using Tensors = std::map<std::string, Tensor>;

}  // namespace svit
