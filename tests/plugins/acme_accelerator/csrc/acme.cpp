// The Acme accelerator as torch sees it: two devices whose memory is the host's and whose operations are the host's,
// over memory, streams, graphs and random numbers of their own; and two kernels that only they have.
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <torch/library.h>

#include "kernels.h"
#include "operations.h"

namespace acme {
namespace {

const c10::AllocatorRegisterer<ACME> allocator_registered(&Allocator::get());

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

class Hooks final : public at::PrivateUse1HooksInterface {
 public:
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return DEVICE_COUNT; }
  void setCurrentDevice(c10::DeviceIndex device) const override { Guard().setDevice({ACME, device}); }
  c10::DeviceIndex getCurrentDevice() const override { return current_device(); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
    return Guard().exchangeDevice({ACME, device}).index();
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
    return device < 0 ? current_device() : exchangeDevice(device);
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex device) const override {
    return Generator::of_device(device);
  }
  at::Generator getNewGenerator(c10::DeviceIndex device) const override {
    return at::make_generator<Generator>(device < 0 ? current_device() : device);
  }
};

const bool hooks_registered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

c10::Dict<std::string, int64_t> counters_by_name() {
  const Counters& now = counters();
  c10::Dict<std::string, int64_t> by_name;
  by_name.insert("allocations", now.allocations);
  by_name.insert("out_of_memory", now.out_of_memory);
  by_name.insert("operations", now.operations);
  by_name.insert("operations_at_high_clock", now.operations_at_high_clock);
  by_name.insert("rms_norm", now.rms_norm);
  by_name.insert("store_kv", now.store_kv);
  by_name.insert("captures", now.captures);
  by_name.insert("recorded_operations", now.recorded_operations);
  by_name.insert("replays", now.replays);
  by_name.insert("replayed_operations", now.replayed_operations);
  return by_name;
}

void set_clock(bool high) { high_clock() = high; }

void manual_seed(int64_t seed, int64_t device) {
  Generator::of_device(c10::DeviceIndex(device)).set_current_seed(uint64_t(seed));
}

}  // namespace
}  // namespace acme

TORCH_LIBRARY(acme, library) {
  library.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  library.def("store_kv(Tensor(a!) buffer, Tensor slots, Tensor rows) -> ()");
  library.def("device_count() -> int", [] { return int64_t(acme::DEVICE_COUNT); });
  library.def("counters() -> Dict(str, int)", acme::counters_by_name);
  library.def("set_clock(bool high) -> ()", acme::set_clock);
  library.def("manual_seed(int seed, int device) -> ()", acme::manual_seed);
}

TORCH_LIBRARY_IMPL(acme, PrivateUse1, library) {
  library.impl("rms_norm", acme::rms_norm);
  library.impl("store_kv", acme::store_kv);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", acme::empty);
  library.impl("empty_strided", acme::empty_strided);
  library.impl("resize_", acme::resize);
  library.impl("_copy_from", acme::copy_from);
  library.impl("_copy_from_and_resize", acme::copy_from_and_resize);
  library.impl("_local_scalar_dense", acme::local_scalar);
  library.impl("as_strided", acme::as_strided);
  library.impl("view", acme::view);
  library.impl("_reshape_alias", acme::reshape_alias);
}

// Whatever has no kernel of its own here.
TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&acme::fallback>());
}
