// Streams and events. Work is done when it has been submitted, as with CUDA_LAUNCH_BLOCKING=1; what streams are for is
// checked instead: to touch what another stream has written without having waited for it is an error.
#pragma once

#include <c10/core/Stream.h>

#include <atomic>
#include <chrono>
#include <vector>

#include "memory.h"

namespace acme {

using Clock = std::chrono::steady_clock;

// What a piece of work does with a block of memory.
struct Use {
  std::shared_ptr<Block> block;
  bool writes;
};

class Streams {
 public:
  static Streams& get() {
    static Streams* streams = new Streams;
    return *streams;
  }

  // The stream that this thread's work goes to on a device; 0 is the default stream of each device.
  static c10::StreamId& current(c10::DeviceIndex device) {
    thread_local std::array<c10::StreamId, DEVICE_COUNT> ids{};
    return ids.at(device);
  }

  c10::StreamId make() { return next_++; }

  // Count a piece of work on a stream.
  //
  // Raises where another stream has written what it uses, or has read what it writes, and this one has not waited.
  void submit(const std::string& name, c10::DeviceIndex device, c10::StreamId stream, const std::vector<Use>& uses) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Progress& seen = seen_[{device, stream}];
    const c10::StreamId me = key(device, stream);
    for (const Use& use : uses) {
      check_waited(name, me, seen, use.block->written, "written");
      if (use.writes) check_waited(name, me, seen, use.block->read, "read");
    }
    const int64_t now = ++seen[me];
    for (const Use& use : uses) {
      if (!use.writes) {
        use.block->read[me] = now;
        continue;
      }
      use.block->written = {{me, now}};
      use.block->read.clear();
    }
  }

  Progress progress(c10::DeviceIndex device, c10::StreamId stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return seen_[{device, stream}];
  }

  // What is submitted to a stream from now on comes after `progress`.
  void wait(c10::DeviceIndex device, c10::StreamId stream, const Progress& progress) {
    const std::lock_guard<std::mutex> lock(mutex_);
    merge(seen_[{device, stream}], progress);
  }

  // The host has waited: all that it submits from now on comes after `progress`, on whatever stream.
  void host_waited(const Progress& progress) {
    const std::lock_guard<std::mutex> lock(mutex_);
    merge(host_, progress);
  }

  Progress progress_of_device(c10::DeviceIndex device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Progress all;
    for (const auto& [of, seen] : seen_) {
      if (of.first == device) merge(all, seen);
    }
    return all;
  }

 private:
  // Streams of both devices in one key.
  static c10::StreamId key(c10::DeviceIndex device, c10::StreamId stream) { return stream * DEVICE_COUNT + device; }

  static std::string shown(c10::StreamId key) {
    return "stream " + std::to_string(key / DEVICE_COUNT) + " of acme:" + std::to_string(key % DEVICE_COUNT);
  }

  static void merge(Progress& into, const Progress& from) {
    for (const auto& [stream, reached] : from) into[stream] = std::max(into[stream], reached);
  }

  void check_waited(const std::string& name, c10::StreamId me, Progress& seen, const Progress& used, const char* how) {
    for (const auto& [stream, reached] : used) {
      const bool waited = stream == me || seen[stream] >= reached || host_[stream] >= reached;
      TORCH_CHECK(waited, "acme: ", name, " on ", shown(me), " uses memory that was ", how, " on ", shown(stream),
                  ", for which it has not waited: call wait_stream first");
    }
  }

  std::mutex mutex_;
  std::atomic<c10::StreamId> next_{1};
  std::map<std::pair<c10::DeviceIndex, c10::StreamId>, Progress> seen_;
  Progress host_;
};

struct Event {
  Clock::time_point time;
  Progress progress;
};

// Set while a graph is recorded on this thread; see graph.h.
void refuse_if_recording(const std::string& what);
bool is_recording(c10::DeviceIndex device, c10::StreamId stream);

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return ACME; }

  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before(ACME, current_device());
    setDevice(device);
    return before;
  }

  c10::Device getDevice() const override { return {ACME, current_device()}; }

  void setDevice(c10::Device device) const override {
    check_device(device.index());
    current_device() = device.index();
  }

  void uncheckedSetDevice(c10::Device device) const noexcept override { current_device() = device.index(); }

  c10::DeviceIndex deviceCount() const noexcept override { return DEVICE_COUNT; }

  c10::Stream getStream(c10::Device device) const override { return stream(device, Streams::current(device.index())); }

  c10::Stream getDefaultStream(c10::Device device) const override { return stream(device, 0); }

  c10::Stream getNewStream(c10::Device device, int) const override { return stream(device, Streams::get().make()); }

  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getNewStream(device, 0); }

  c10::Stream exchangeStream(c10::Stream next) const override {
    const c10::Stream before = getStream(next.device());
    Streams::current(next.device_index()) = next.id();
    return before;
  }

  bool isStreamCapturing(const c10::Stream& of) const override { return is_recording(of.device_index(), of.id()); }

  bool queryStream(const c10::Stream&) const override { return true; }

  void synchronizeStream(const c10::Stream& of) const override {
    if (is_recording(of.device_index(), of.id())) refuse_if_recording("waiting for the stream");
    Streams::get().host_waited(Streams::get().progress(of.device_index(), of.id()));
  }

  void synchronizeDevice(const c10::DeviceIndex device) const override {
    refuse_if_recording("waiting for the device");
    Streams::get().host_waited(Streams::get().progress_of_device(device));
  }

  void record(void** event, const c10::Stream& on, const c10::DeviceIndex, const c10::EventFlag) const override {
    if (*event == nullptr) *event = new Event;
    *static_cast<Event*>(*event) = {Clock::now(), Streams::get().progress(on.device_index(), on.id())};
  }

  void block(void* event, const c10::Stream& waits) const override {
    // An event that was never recorded is nothing to wait for.
    if (event == nullptr) return;
    Streams::get().wait(waits.device_index(), waits.id(), static_cast<Event*>(event)->progress);
  }

  bool queryEvent(void*) const override { return true; }

  void synchronizeEvent(void* event) const override {
    if (event != nullptr) Streams::get().host_waited(static_cast<Event*>(event)->progress);
  }

  double elapsedTime(void* start, void* end, const c10::DeviceIndex) const override {
    TORCH_CHECK(start != nullptr && end != nullptr, "acme: both events must be recorded before their times are known");
    const auto elapsed = static_cast<Event*>(end)->time - static_cast<Event*>(start)->time;
    return std::chrono::duration<double, std::milli>(elapsed).count();
  }

  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }

 private:
  static c10::Stream stream(c10::Device device, c10::StreamId id) {
    const auto index = device.has_index() ? device.index() : current_device();
    return c10::Stream(c10::Stream::UNSAFE, c10::Device(ACME, index), id);
  }
};

}  // namespace acme
