// Graphs: what was submitted to a stream while one was recorded, to be done again over the same memory.
#pragma once

#include <ATen/core/GraphImplInterface.h>

#include <fstream>
#include <functional>
#include <utility>

#include "streams.h"

namespace acme {

// A piece of work. What it reads and writes it knows by address, as a device does: it keeps no tensor alive.
struct Command {
  std::string name;
  std::function<void()> run;
  std::vector<Use> uses;
};

// What is recorded on this thread, and where.
struct Recording {
  std::vector<Command> commands;
  c10::DeviceIndex device;
  c10::StreamId stream;
  // Why the recording cannot be used any more; empty as long as it can.
  std::string broken;
};

inline Recording*& recording() {
  thread_local Recording* current = nullptr;
  return current;
}

inline bool is_recording(c10::DeviceIndex device, c10::StreamId stream) {
  return recording() != nullptr && recording()->device == device && recording()->stream == stream;
}

inline bool is_recorded_now() {
  return recording() != nullptr && is_recording(current_device(), Streams::current(current_device()));
}

// Raise, and break the recording, for what a replay could not do again.
inline void refuse_if_recording(const std::string& what) {
  if (recording() == nullptr) return;
  recording()->broken = what;
  TORCH_CHECK(false, "acme: ", what, " is not possible while a graph is recorded");
}

// Clock that the device runs at; a vendor's driver would be told.
inline bool& high_clock() {
  static bool high = false;
  return high;
}

// Count a piece of work on the current device and stream.
inline void submit(const std::string& name, const std::vector<Use>& uses) {
  Streams::get().submit(name, current_device(), Streams::current(current_device()), uses);
  ++counters().operations;
  if (high_clock()) ++counters().operations_at_high_clock;
}

inline void record(Command command) {
  ++counters().recorded_operations;
  recording()->commands.push_back(std::move(command));
}

// Do a piece of work, and record it if a graph is recorded.
inline void launch(Command command) {
  submit(command.name, command.uses);
  command.run();
  if (is_recorded_now()) record(std::move(command));
}

class Graph final : public at::GraphImplInterface {
 public:
  explicit Graph(const at::GraphImplArgs& args) : keep_graph_(args.keep_graph) {
    TORCH_CHECK(!lacks("graphs"), "acme: this revision of the device cannot record graphs");
  }

  ~Graph() override { reset(); }

  // Other threads may go on whatever the mode: a recording is one thread's, and one stream's.
  void capture_begin(c10::MempoolId_t pool, at::GraphCaptureMode) override {
    TORCH_CHECK(recording() == nullptr, "acme: a graph is being recorded on this thread already");
    const c10::DeviceIndex device = current_device();
    const c10::StreamId stream = Streams::current(device);
    TORCH_CHECK(stream != 0, "acme: a graph cannot be recorded on the default stream: use a stream of its own");
    reset();
    static std::atomic<unsigned long long> next_pool{1};
    if (pool == GENERAL_POOL) {
      pool_ = {next_pool++, 0};
      Allocator::get().create_pool(pool_);
    } else {
      Allocator::get().share_pool(pool);
      pool_ = pool;
    }
    Allocator::current_pool() = pool_;
    recording_ = {{}, device, stream, ""};
    recording() = &recording_;
  }

  void capture_end() override {
    TORCH_CHECK(recording() == &recording_, "acme: this graph is not being recorded");
    stop_recording();
    if (!recording_.broken.empty()) {
      const std::string reason = recording_.broken;
      reset();
      TORCH_CHECK(false, "acme: the graph cannot be used, because ", reason, " was tried while it was recorded");
    }
    ++counters().captures;
    captured_ = true;
    if (!keep_graph_) instantiate();
  }

  void instantiate() override {
    TORCH_CHECK(captured_, "acme: there is nothing to instantiate: record the graph first");
    instantiated_ = true;
  }

  void replay() override {
    refuse_if_recording("replaying a graph");
    if (!instantiated_) instantiate();
    const c10::DeviceIndex device = current_device();
    TORCH_CHECK(device == recording_.device, "acme: the graph was recorded on device ", int(recording_.device),
                ", the current device is ", int(device));
    ++counters().replays;
    for (const Command& command : recording_.commands) {
      Streams::get().submit(command.name, device, Streams::current(device), command.uses);
      command.run();
      ++counters().replayed_operations;
      if (high_clock()) ++counters().operations_at_high_clock;
    }
  }

  void reset() override {
    if (recording() == &recording_) stop_recording();
    recording_.commands.clear();
    captured_ = instantiated_ = false;
    if (pool_ != GENERAL_POOL) Allocator::get().release_pool(std::exchange(pool_, GENERAL_POOL));
  }

  c10::MempoolId_t pool() const override { return pool_; }

  void enable_debug_mode() override { debug_ = true; }

  // One line per operation.
  void debug_dump(const std::string& path) override {
    TORCH_CHECK(debug_, "acme: call enable_debug_mode before the graph is dumped");
    std::ofstream file(path);
    for (const Command& command : recording_.commands) file << command.name << "\n";
    TORCH_CHECK(file.good(), "acme: ", path, " cannot be written");
  }

 private:
  static void stop_recording() {
    recording() = nullptr;
    Allocator::current_pool() = GENERAL_POOL;
  }

  const bool keep_graph_;
  bool captured_ = false;
  bool instantiated_ = false;
  bool debug_ = false;
  c10::MempoolId_t pool_ = GENERAL_POOL;
  Recording recording_;
};

}  // namespace acme

namespace at {
// Torch looks for the device's name as `torch.utils.rename_privateuse1_backend` has made it, in capitals.
C10_REGISTER_CLASS(GraphImplRegistry, ACME, acme::Graph);
}  // namespace at
