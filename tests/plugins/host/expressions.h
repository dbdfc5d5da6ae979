// An expression builder that computes at once, so that a test can read what a plugin declares.
// TensorRT's own is behind its library; its headers warn against deriving from these classes in
// production, where it hands over its own.
#pragma once

#include "host.h"

namespace host {

class Expression final : public trt::IDimensionExpr, public trt::apiv::VDimensionExpr
{
public:
    explicit Expression(int64_t value, bool is_size = false) : mValue(value), mIsSize(is_size)
    {
        trt::IDimensionExpr::mImpl = this;
    }
    bool isConstant() const override { return false; }
    int64_t getConstantValue() const override { return mValue; }
    bool isSizeTensor() const override { return mIsSize; }

private:
    int64_t mValue;
    bool mIsSize;
};

struct SizeTensor
{
    int64_t opt, upper;
    trt::IDimensionExpr const* expression;
};

class Expressions final : public trt::IExprBuilder, public trt::apiv::VExprBuilder
{
public:
    Expressions() { trt::IExprBuilder::mImpl = this; }

    trt::IDimensionExpr const* constant(int64_t value) override { return keep(value, false); }

    trt::IDimensionExpr const* operation(trt::DimensionOperation operation,
                                         trt::IDimensionExpr const& first,
                                         trt::IDimensionExpr const& second) override
    {
        CHECK(!first.isSizeTensor() && !second.isSizeTensor());
        int64_t const a = first.getConstantValue();
        int64_t const b = second.getConstantValue();
        switch (operation) {
        case trt::DimensionOperation::kSUM: return keep(a + b, false);
        case trt::DimensionOperation::kPROD: return keep(a * b, false);
        case trt::DimensionOperation::kCEIL_DIV: return keep((a + b - 1) / b, false);
        default: CHECK(!"an operation this test knows"); return keep(0, false);
        }
    }

    trt::IDimensionExpr const* declareSizeTensor(int32_t output, trt::IDimensionExpr const& opt,
                                                 trt::IDimensionExpr const& upper) override
    {
        CHECK(sizes.count(output) == 0);
        auto const* expression = keep(-1, true);
        sizes[output] = {opt.getConstantValue(), upper.getConstantValue(), expression};
        return expression;
    }

    trt::DimsExprs shape(std::initializer_list<int64_t> sizes)
    {
        trt::DimsExprs result{};
        for (int64_t size : sizes) {
            result.d[result.nbDims++] = constant(size);
        }
        return result;
    }

    std::map<int32_t, SizeTensor> sizes;

private:
    trt::IDimensionExpr const* keep(int64_t value, bool is_size)
    {
        mKept.push_back(std::make_unique<Expression>(value, is_size));
        return mKept.back().get();
    }

    std::vector<std::unique_ptr<Expression>> mKept;
};

}  // namespace host
