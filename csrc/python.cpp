// involution._C: says what was built. It includes and links nothing of torch, so that it can be imported,
// and asked, under a torch for which the operators' library was not built.
#include <pybind11/pybind11.h>

#include "build_info.h"  // written by setup.py

namespace py = pybind11;

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "Clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "GCC " __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
#endif

py::dict BuildInfo() {
  py::dict info;
  info["version"] = kVersion;
  info["torch"] = kTorch;
  info["cuda"] = kCuda;  // a null pointer becomes None
  info["architectures"] = py::str(kArchitectures).attr("split")();
  info["no_cuda_reason"] = kNoCudaReason;
  info["compiler"] = kCompiler;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "What was built, and against what.";
  module.def("build_info", &BuildInfo, "The versions and architectures that the extension was built for.");
}
