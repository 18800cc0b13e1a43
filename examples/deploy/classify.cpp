// Says what a picture shows, by an AOTInductor package and without Python:
//
//   classify PACKAGE.pt2 PICTURE.pgm
//
// The package is what `python -m involution.export CHECKPOINT --format aoti` writes. It holds the network,
// the normalisation and the names of the classes. The picture is a binary PGM (grey) or PPM (colour) of 8
// bits. Headers are chosen to be few: <torch/torch.h> alone would take half a minute to compile.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

// The next word of a PGM header, after white space and comments.
std::string next_word(std::istream& stream) {
  std::string word;
  while (stream >> word && word[0] == '#') stream.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  return word;
}

// A picture as (1, channels, height, width) of float32 from 0 to 1.
at::Tensor read_picture(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("The picture " + path + " cannot be opened.");
  const std::string kind = next_word(file);
  if (kind != "P5" && kind != "P6") {
    throw std::runtime_error(path + " is not a binary PGM or PPM picture: it begins with '" + kind + "'.");
  }
  const int64_t channels = kind == "P5" ? 1 : 3;
  const int64_t width = std::atoll(next_word(file).c_str());
  const int64_t height = std::atoll(next_word(file).c_str());
  const int64_t largest = std::atoll(next_word(file).c_str());
  file.get();  // one white space ends the header
  if (width < 1 || height < 1 || largest < 1 || largest > 255) {
    throw std::runtime_error("The header of " + path +
                             " must state a width, a height and a largest value of at most "
                             "255, but they are " +
                             std::to_string(width) + ", " + std::to_string(height) + " and " +
                             std::to_string(largest) + ".");
  }
  std::vector<unsigned char> bytes(static_cast<size_t>(channels * width * height));
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (file.gcount() != static_cast<std::streamsize>(bytes.size())) {
    throw std::runtime_error("The picture " + path + " ends before its last pixel.");
  }
  const at::Tensor pixels = at::from_blob(bytes.data(), {1, height, width, channels}, at::kByte);
  // A package takes its input for contiguous, whatever the strides. Flattening and viewing also sets those of
  // axes of size 1, which contiguous() leaves as they are and by which a convolution may choose another
  // memory format.
  const at::Tensor image = pixels.permute({0, 3, 1, 2}).to(at::kFloat).div(static_cast<double>(largest));
  return image.contiguous().flatten().view({1, channels, height, width});
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

int run(const std::string& package, const std::string& picture) {
  const at::NoGradGuard no_grad;
  torch::inductor::AOTIModelPackageLoader model(package);
  const auto metadata = model.get_metadata();
  const at::Tensor scores = model.run({read_picture(picture)}).at(0);
  const at::Tensor shares = scores.softmax(1);
  const auto best = scores.argmax(1).item<int64_t>();
  const std::vector<std::string> classes = lines_of(metadata.at("classes"));
  std::printf("%s %.4f\n", classes.at(static_cast<size_t>(best)).c_str(), shares[0][best].item<double>());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s PACKAGE.pt2 PICTURE.pgm\n", argv[0]);
    return 2;
  }
  // Without this, a package that gets another dtype or number of channels than it was made for computes
  // nonsense.
  setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", 0);
  try {
    return run(argv[1], argv[2]);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
