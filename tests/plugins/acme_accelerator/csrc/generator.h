// Random numbers of the device: one default generator per device, and as many more as are asked for.
#pragma once

#include <ATen/CPUGeneratorImpl.h>

#include "memory.h"

namespace acme {

// A generator of the device's, which lets one of the host's draw.
class Generator final : public c10::GeneratorImpl {
 public:
  explicit Generator(c10::DeviceIndex device, at::Generator host = at::detail::createCPUGenerator())
      : GeneratorImpl(c10::Device(ACME, device), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        host_(std::move(host)) {}

  // Each device's own, seeded alike until the program seeds it.
  static at::Generator& of_device(c10::DeviceIndex device) {
    static auto* generators = new std::array<at::Generator, DEVICE_COUNT>{
        at::make_generator<Generator>(c10::DeviceIndex(0)), at::make_generator<Generator>(c10::DeviceIndex(1))};
    return generators->at(device < 0 ? current_device() : device);
  }

  const at::Generator& host() const { return host_; }

  void set_current_seed(uint64_t seed) override { host_.set_current_seed(seed); }
  uint64_t current_seed() const override { return host_.current_seed(); }
  uint64_t seed() override { return host_.seed(); }
  void set_offset(uint64_t offset) override { host_.set_offset(offset); }
  uint64_t get_offset() const override { return host_.get_offset(); }
  void set_state(const c10::TensorImpl& state) override { host_.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return host_.unsafeGetGeneratorImpl()->get_state();
  }

 private:
  Generator* clone_impl() const override { return new Generator(device().index(), host_.clone()); }

  at::Generator host_;
};

}  // namespace acme
