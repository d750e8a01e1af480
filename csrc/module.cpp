// The Python module prograd_fast._C: what was built, registration, and the eager fast path.
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "library.h"
#include "operators.h"

namespace prograd {
namespace {

namespace py = pybind11;

py::dict build_facts() {
  py::dict facts;
  facts["compiler"] = PF_COMPILER;
  facts["flags"] = PF_FLAGS;
  facts["torch"] = PF_TORCH_VERSION;
  py::list isas;
  for (const char* isa : {"baseline", "avx2", "avx512"}) {
    if (kernels_for(isa)) isas.append(isa);
  }
  facts["instruction_sets"] = isas;
  facts["instruction_set"] = kernels().isa;
#ifdef PF_CUDA
  facts["cuda"] = PF_CUDA_VERSION;
  facts["cuda_architectures"] = PF_CUDA_ARCHITECTURES;
#else
  facts["cuda"] = py::none();
#endif
  return facts;
}

}  // namespace
}  // namespace prograd

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace prograd;
  m.def("build_facts", &build_facts, "Compiler, flags, instruction sets, CUDA.");
  m.def("register_cpu", &register_cpu, "Put the CPU kernels into the dispatcher.");
  m.def("unregister_cpu", &unregister_cpu, "Take them out.");
#ifdef PF_CUDA
  m.def("register_cuda", &register_cuda, "Put the CUDA kernels into the dispatcher.");
  m.def("unregister_cuda", &unregister_cuda, "Take them out.");
#endif
}
