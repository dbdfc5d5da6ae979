// Runs a bundle on one picture: classes with probabilities and kept tokens per gate, or boxes.
//
//   svit_run BUNDLE PICTURE [--tensorrt] [--plugins FILE] [--top N] [--min-score S] [--tensors
//   FOLDER]

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <numeric>
#include <optional>

#include "picture.h"
#include "prepare.h"
#include "runtime.h"

namespace {

using namespace svit;

struct Options {
    std::filesystem::path bundle, picture, plugins, tensors;
    bool tensorrt = false;
    std::size_t top = 5;
    double min_score = 0.3;
};

constexpr const char* usage =
    "usage: svit_run BUNDLE PICTURE [--tensorrt] [--plugins FILE] [--top N] [--min-score S] "
    "[--tensors FOLDER]";

Options parse(int count, char** words) {
    Options options;
    std::vector<std::string> places;
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        const auto value = [&]() -> std::string {
            if (++i == count) throw std::invalid_argument(word + " needs a value");
            return words[i];
        };
        if (word == "--tensorrt") {
            options.tensorrt = true;
        } else if (word == "--plugins") {
            options.plugins = value();
        } else if (word == "--top") {
            options.top = std::stoul(value());
        } else if (word == "--min-score") {
            options.min_score = std::stod(value());
        } else if (word == "--tensors") {
            options.tensors = value();
        } else if (word.rfind("--", 0) == 0) {
            throw std::invalid_argument("there is no option " + word);
        } else {
            places.push_back(word);
        }
    }
    if (places.size() != 2) throw std::invalid_argument("give a bundle and a picture");
    options.bundle = places[0];
    options.picture = places[1];
    return options;
}

std::unique_ptr<Runtime> open(const Bundle& bundle, const Options& options) {
    if (options.tensorrt) {
#ifdef WITH_TENSORRT
        return open_tensorrt(bundle, options.plugins);
#else
        throw std::runtime_error("built without TensorRT: configure with -DWITH_TENSORRT=ON");
#endif
    }
#ifdef WITH_ONNXRUNTIME
    return open_onnxruntime(bundle);
#else
    throw std::runtime_error(
        "built without ONNX Runtime: give --tensorrt, or configure with -DWITH_ONNXRUNTIME=ON");
#endif
}

// Of the first image of the batch.
void print_classes(const Tensors& outputs, const Bundle& bundle, std::size_t top) {
    const Tensor& tensor = outputs.at("logits");
    const auto classes = static_cast<std::size_t>(tensor.shape.at(1));
    const float* logits = tensor.data<float>();
    const double highest = *std::max_element(logits, logits + classes);
    std::vector<double> powers(classes);
    std::transform(logits, logits + classes, powers.begin(),
                   [=](float logit) { return std::exp(logit - highest); });
    const double sum = std::accumulate(powers.begin(), powers.end(), 0.0);
    std::vector<std::size_t> ranked(classes);
    std::iota(ranked.begin(), ranked.end(), std::size_t{0});
    std::stable_sort(ranked.begin(), ranked.end(),
                     [=](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
    ranked.resize(std::min(top, classes));
    for (const std::size_t label : ranked) {
        std::cout << std::fixed << std::setprecision(6) << powers[label] / sum << "  " << label
                  << "  " << bundle.title(static_cast<std::int64_t>(label)) << '\n';
    }
}

void print_boxes(const Tensors& outputs, const Bundle& bundle, double min_score) {
    const Tensor& scores = outputs.at("scores");
    const float* boxes = outputs.at("boxes").data<float>();
    const std::int64_t* labels = outputs.at("labels").data<std::int64_t>();
    const std::int64_t* images = outputs.at("image_index").data<std::int64_t>();
    for (std::size_t i = 0; i < scores.size(); ++i) {
        if (images[i] != 0 || scores.data<float>()[i] < min_score) continue;
        std::cout << std::fixed << std::setprecision(4) << scores.data<float>()[i]
                  << std::setprecision(1);
        for (std::size_t side = 0; side < 4; ++side) std::cout << "  " << boxes[4 * i + side];
        std::cout << "  " << labels[i] << "  " << bundle.title(labels[i]) << '\n';
    }
}

void print_kept(const Tensors& outputs, const Bundle& bundle) {
    const auto found = outputs.find("keep_mask");
    if (found == outputs.end()) return;
    const auto gates = static_cast<std::size_t>(found->second.shape.at(1));
    const auto tokens = static_cast<std::size_t>(found->second.shape.at(2));
    const bool* kept = found->second.data<bool>();
    for (std::size_t gate = 0; gate < gates; ++gate) {
        const auto count = std::count(kept + gate * tokens, kept + (gate + 1) * tokens, true);
        std::cout << "gate " << gate << ", block " << bundle.gate_blocks.at(gate) << ": " << count
                  << " of " << tokens << " tokens\n";
    }
    const auto overflow = outputs.find("overflow");
    if (overflow == outputs.end()) return;
    for (std::size_t gate = 0; gate < gates; ++gate) {
        const std::int64_t beyond = overflow->second.data<std::int64_t>()[gate];
        if (beyond > 0)
            std::cout << "gate " << gate << ": " << beyond
                      << " tokens beyond its budget were pruned\n";
    }
}

void write_tensors(const Tensors& tensors, const std::filesystem::path& folder) {
    std::filesystem::create_directories(folder);
    for (const auto& [name, tensor] : tensors) {
        std::ofstream stream(folder / (name + ".bin"), std::ios::binary);
        stream.write(reinterpret_cast<const char*>(tensor.bytes.data()),
                     static_cast<std::streamsize>(tensor.bytes.size()));
        if (!stream.flush()) throw std::runtime_error("cannot write into " + folder.string());
    }
}

void run(const Options& options) {
    const Bundle bundle = open_bundle(options.bundle);
    const Tensors inputs = prepare(read_picture(options.picture), bundle);
    const Tensors outputs = open(bundle, options)->run(inputs);
    if (!options.tensors.empty()) {
        write_tensors(inputs, options.tensors);
        write_tensors(outputs, options.tensors);
    }
    if (outputs.count("logits") != 0) print_classes(outputs, bundle, options.top);
    if (outputs.count("boxes") != 0) print_boxes(outputs, bundle, options.min_score);
    print_kept(outputs, bundle);
}

}  // namespace

int main(int count, char** words) {
    Options options;
    try {
        options = parse(count, words);
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << "\n" << usage << '\n';
        return 2;
    }
    try {
        run(options);
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 1;
    }
    return 0;
}
