#include "bundle.h"

#include <fstream>
#include <stdexcept>

#include <nlohmann/json.hpp>

namespace svit {
namespace {

using nlohmann::json;

constexpr int newest_schema = 1;

Size read_size(const json& sides) { return {sides.at(0).get<int>(), sides.at(1).get<int>()}; }

Interpolation read_interpolation(const std::string& name) {
    if (name == "nearest") return Interpolation::nearest;
    if (name == "bilinear") return Interpolation::bilinear;
    if (name == "bicubic") return Interpolation::bicubic;
    throw std::runtime_error("unknown interpolation " + name);
}

Bundle read(const json& manifest) {
    if (manifest.at("schema_version").get<int>() > newest_schema) {
        throw std::runtime_error("it was written by a newer version");
    }
    Bundle bundle;
    bundle.task = manifest.value("task", "classify");
    bundle.precision = manifest.at("precision");
    const json& model = manifest.at("model");
    bundle.image_size = read_size(model.at("image_size"));
    const json& told = manifest.at("preprocess");
    for (std::size_t channel = 0; channel < 3; ++channel) {
        // From double to float once, as NumPy does it.
        bundle.preprocess.mean[channel] =
            static_cast<float>(told.at("mean").at(channel).get<double>());
        bundle.preprocess.std[channel] =
            static_cast<float>(told.at("std").at(channel).get<double>());
    }
    bundle.preprocess.crop_ratio = told.at("crop_ratio").get<double>();
    bundle.preprocess.interpolation =
        read_interpolation(told.at("interpolation").get<std::string>());
    if (bundle.task != "classify") {
        const Size min = read_size(manifest.at("image").at("min"));
        bundle.padding.opt = read_size(manifest.at("image").at("opt"));
        bundle.padding.max = read_size(manifest.at("image").at("max"));
        bundle.padding.fixed = min == bundle.padding.max;
        bundle.padding.short_side = model.at("resize").at(0).get<int>();
        bundle.padding.long_side = model.at("resize").at(1).get<int>();
    }
    bundle.min_batch = manifest.at("batch").at("min").get<int>();
    if (!manifest.at("engine").is_null()) bundle.engine = manifest.at("engine").get<std::string>();
    if (manifest.contains("class_names")) {
        bundle.class_names = manifest.at("class_names").get<std::vector<std::string>>();
    } else if (model.contains("class_names")) {  // of a detector's checkpoint
        bundle.class_names = model.at("class_names").get<std::vector<std::string>>();
    }
    for (const json& gate : manifest.at("gates")) {
        bundle.gate_blocks.push_back(gate.at("block").get<int>());
    }
    return bundle;
}

}  // namespace

std::string Bundle::title(std::int64_t label) const {
    const auto number = static_cast<std::size_t>(label);
    return number < class_names.size() ? class_names[number] : "class " + std::to_string(label);
}

Bundle open_bundle(const std::filesystem::path& folder) {
    const std::filesystem::path file = folder / "manifest.json";
    std::ifstream stream(file);
    if (!stream)
        throw std::runtime_error(file.string() + " cannot be read: give the folder of an export");
    try {
        Bundle bundle = read(json::parse(stream));
        bundle.folder = folder;
        return bundle;
    } catch (const std::exception& error) {
        throw std::runtime_error(file.string() + " is no manifest of a bundle: " + error.what());
    }
}

}  // namespace svit
