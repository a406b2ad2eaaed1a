// SPDX-License-Identifier: Apache-2.0
#include "vmm/vm.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <mutex>
#include <vector>

#include <fmt/core.h>

#include "api/machine_json.hpp"
#include "base/event_loop.hpp"
#include "base/log.hpp"
#include "base/mapped_file.hpp"
#include "block/image/open_image.hpp"
#include "description/host_cpu.hpp"
#include "machine/pc.hpp"
#include "vmm/board_state.hpp"
#include "vmm/console.hpp"
#include "vmm/crash_report.hpp"
#include "vmm/engine.hpp"
#include "vmm/inputs.hpp"
#include "vmm/io_devices.hpp"
#include "vmm/save_job.hpp"
#include "vmm/state_file/state_file.hpp"
#include "vmm/statistics.hpp"
#include "vmm/turns.hpp"
#include "vmm/vcpu_thread.hpp"

namespace doppel::vmm {

using base::Result;
using description::Machine;

namespace {

struct BootFiles {
    base::MappedFile kernel;
    base::MappedFile initrd;
    std::vector<base::MappedFile> modules;
};

/// The error of opening a boot file begins with what it was to be.
Result<base::MappedFile> open_boot_file(const char* what, const std::string& path) {
    auto file = base::MappedFile::open(path);
    if (!file)
        return std::unexpected(std::move(file).error().with_context(what));
    return file;
}

Result<BootFiles> open_boot_files(const description::Boot& boot) {
    BootFiles files;
    files.kernel = DOPPEL_TRY(open_boot_file("kernel", boot.kernel));
    if (!boot.initrd.empty())
        files.initrd = DOPPEL_TRY(open_boot_file("initial ramdisk", boot.initrd));
    for (const auto& module : boot.modules)
        files.modules.push_back(
            DOPPEL_TRY(open_boot_file("module", module.substr(0, module.find(' ')))));
    return files;
}

__extension__ using Wide = unsigned __int128;

Result<StateFile> open_state(base::UniqueFd fd) {
    std::error_code error; // the name is for messages alone
    const auto name =
        std::filesystem::read_symlink(fmt::format("/proc/self/fd/{}", fd.get()), error);
    return StateFile::read(std::move(fd), name.string());
}

/// Whoever restores the VM may stand in another folder.
Machine with_absolute_paths(Machine machine) {
    const auto make_absolute = [](std::string& path) {
        std::error_code error;
        const auto absolute = std::filesystem::absolute(path, error);
        if (!path.empty() && !error)
            path = absolute.string();
    };
    make_absolute(machine.boot.kernel);
    make_absolute(machine.boot.initrd);
    make_absolute(machine.console.path);
    make_absolute(machine.virtio_console.console.path);
    for (auto& module : machine.boot.modules)
        make_absolute(module);
    for (auto& disk : machine.disks)
        if (!block::is_network_name(disk.path))
            make_absolute(disk.path);
    for (auto& secret : machine.secrets)
        make_absolute(secret.file);
    return machine;
}

} // namespace

/// Members in order of construction; destruction is the reverse: threads end before the board does.
struct Vm::Impl final : machine::PowerSink, SaveJob::Source {
    explicit Impl(const Machine& machine) : description{machine} {}
    ~Impl() override {
        job.reset();
        stop_threads();
        if (board)
            board->disconnect();
    }

    Machine description;
    description::CpuModel model;
    std::optional<StateFile> saved; // until run(): the VM goes on from it
    RestoreClock restore_clock = RestoreClock::CatchUp;
    BootFiles files;
    base::UniqueFd started;
    std::unique_ptr<base::EventLoop> loop;
    OpenConsole console;
    OpenConsole virtio_console; // empty: there is none
    std::unique_ptr<Inputs> inputs;
    std::unique_ptr<IoDevices> io;
    std::unique_ptr<machine::Pc> board;
    std::unique_ptr<EngineFactory> engine;
    std::unique_ptr<Turns> turns; // in virtual time
    std::unique_ptr<Profile> profile;
    std::vector<std::unique_ptr<VcpuThread>> vcpus;
    bool is_paused = false;   // control thread
    bool stay_paused = false; // whatever the running job does
    std::uint64_t last_job = 0;
    std::atomic<bool> reset_wanted{false}; // by the guest; done as soon as the VM is paused

    std::mutex outcome_mutex;
    bool has_outcome = false;     // guarded by outcome_mutex; the first one counts
    Outcome outcome;              // guarded by outcome_mutex
    std::unique_ptr<SaveJob> job; // the last one; ends before all of the above

    Result<void> build(Inherited inherited);
    Result<void> open_kernel();
    Result<void> open_consoles(base::UniqueFd inherited);
    Result<void> create_vcpus();
    Result<void> load();
    void set_clocks(const SavedClocks& then, std::uint64_t after_ns);
    Result<void> restore(StateFile& from);
    void go_on(const SavedClocks& then);
    std::vector<cpu::x86::Vcpu*> engines();
    Result<api::Job> save(const api::SaveRequest& request);

    // --- SaveJob::Source ---
    void hold() override { pause(); }
    void let_go() override {
        if (!stay_paused)
            resume();
    }
    SavedVm describe() override;
    void start_dirty_log() override;
    void stop_dirty_log() override { board->memory().stop_dirty_log(); }
    std::vector<std::uint64_t> harvest_dirty_log() override;
    Result<void> flush_disks() override { return io->flush(); }
    void watch_all_writes();

    bool is_saving() const { return job != nullptr && job->is_running(); }
    base::Error in_kernel(base::Error error) const {
        return std::move(error).with_context("kernel '" + description.boot.kernel + "'");
    }
    void pause();
    void resume();
    void reset_if_wanted();
    void stop_threads();
    Result<void> close_io();

    /// Any thread: the VM ends with this.
    void end(Outcome how) {
        {
            const std::scoped_lock lock{outcome_mutex};
            if (has_outcome)
                return;
            has_outcome = true;
            outcome = std::move(how);
        }
        hold_all();
        loop->stop();
    }

    /// Any thread: the vCPUs leave guest code soon, so that nothing runs behind a power-off.
    void hold_all() {
        for (auto& vcpu : vcpus)
            vcpu->request_pause();
    }

    void power_off() noexcept override { end({Outcome::Kind::PowerOff, 0, {}}); }
    void debug_exit(int exit_code) noexcept override {
        end({Outcome::Kind::DebugExit, exit_code, {}});
    }
    void reset_requested() noexcept override {
        if (!description.reboot)
            return end({Outcome::Kind::Rebooted, 0, {}});
        reset_wanted.store(true);
        hold_all();
        loop->post([this] {
            const bool was_paused = is_paused;
            pause();
            if (!was_paused)
                resume();
        });
    }
    void on_exit(unsigned index, cpu::VmExit exit);
};

Result<void> Vm::Impl::build(Inherited inherited) {
    DOPPEL_TRY_VOID(description::validate(description));
    model = DOPPEL_TRY(description::find_cpu_model(description.cpu_model));
    DOPPEL_TRY_VOID(description::check_runs_here(model));
    model.add_paravirtual_features(machine::Pc::kParavirtualFeatures);
    restore_clock = inherited.restore_clock;
    if (inherited.state) {
        saved = DOPPEL_TRY(open_state(std::move(inherited.state)));
    } else {
        DOPPEL_TRY_VOID(open_kernel());
    }
    started = std::move(inherited.started);
    loop = DOPPEL_TRY(base::EventLoop::create());
    DOPPEL_TRY_VOID(open_consoles(std::move(inherited.console)));
    inputs = Inputs::create(description.time, *console.backend);
    if (saved)
        set_clocks(saved->vm().clocks, 0); // before the chips learn the TSC's frequency
    const machine::PcHost host{
        inputs->timers(), inputs->calendar(), inputs->tsc(), inputs->console(), *this, model,
        inputs->meter(),  inputs->entropy()};
    io = DOPPEL_TRY(IoDevices::open(description, virtio_console.backend.get()));
    board = DOPPEL_TRY(machine::Pc::create(
        {description.memory_bytes, description.cpus, description.debug_exit_port, io->functions()},
        host));
    engine = DOPPEL_TRY(create_engine(description, board->memory()));
    DOPPEL_TRY_VOID(create_vcpus());
    return saved ? restore(*saved) : load();
}

/// One of them at most has the terminal.
Result<void> Vm::Impl::open_consoles(base::UniqueFd inherited) {
    const auto& other = description.virtio_console;
    const bool is_other = other.present && other.console.kind == description::ConsoleKind::Stdio;
    base::UniqueFd for_other, for_main;
    (is_other ? for_other : for_main) = std::move(inherited);
    if (other.present)
        virtio_console =
            DOPPEL_TRY(open_console("virtio console", other.console, *loop, std::move(for_other)));
    console = DOPPEL_TRY(open_console("console", description.console, *loop, std::move(for_main)));
    return {};
}

Result<void> Vm::Impl::open_kernel() {
    files = DOPPEL_TRY(open_boot_files(description.boot));
    if (auto format = firmware::detect_kernel(files.kernel.bytes()); !format)
        return std::unexpected(in_kernel(std::move(format).error()));
    return {};
}

Result<void> Vm::Impl::create_vcpus() {
    if (auto* const virtual_inputs = inputs->in_virtual_time())
        turns = std::make_unique<Turns>(*virtual_inputs, description.cpus);
    if (!description.profiling.path.empty())
        profile = DOPPEL_TRY(Profile::create(description.profiling.path,
                                             description.profiling.symbols, description.cpus));
    for (unsigned i = 0; i < description.cpus; ++i) {
        auto vcpu = DOPPEL_TRY(engine->create_vcpu(board->wiring(i)));
        vcpus.push_back(std::make_unique<VcpuThread>(
            i, std::move(vcpu),
            [this](unsigned index, cpu::VmExit exit) { on_exit(index, std::move(exit)); },
            turns.get(), profile.get()));
        board->connect(i, *vcpus.back(), vcpus.back()->vcpu().state());
    }
    if (auto apics = engine->apic_host())
        board->host_apics(std::move(apics));
    if (auto doorbells = engine->doorbell_host())
        DOPPEL_TRY_VOID(board->host_doorbells(std::move(doorbells)));
    return {};
}

Result<void> Vm::Impl::load() {
    if (files.kernel.bytes().empty()) // a restored VM's first reset
        DOPPEL_TRY_VOID(open_kernel());
    machine::PcBoot boot{files.kernel.bytes(),
                         description.boot.kernel,
                         files.initrd.bytes(),
                         description.boot.command_line,
                         {}};
    for (std::size_t i = 0; i < files.modules.size(); ++i)
        boot.modules.push_back({files.modules[i].bytes(), description.boot.modules[i]});
    auto& first = vcpus.front()->vcpu();
    for (auto& vcpu : vcpus) {
        vcpu->vcpu().reset();
        board->apply_firmware_state(vcpu->vcpu().state());
        vcpu->vcpu().state_changed();
    }
    auto booted = board->boot(boot, first.state());
    if (!booted)
        return std::unexpected(in_kernel(std::move(booted).error()));
    first.state_changed();
    files.kernel.drop_pages(); // a reset reads them again
    files.initrd.drop_pages();
    return {};
}

// --- saved and restored -----------------------------------------------------------------------

/// All clocks show what they did `then`, or what they would show `after_ns`; they stand still.
void Vm::Impl::set_clocks(const SavedClocks& then, std::uint64_t after_ns) {
    const auto ticks = static_cast<Wide>(after_ns) * then.tsc_hz / 1'000'000'000;
    inputs->set_clocks(then.vm_time_ns + after_ns, then.tsc + static_cast<std::uint64_t>(ticks),
                       then.tsc_hz);
}

Result<void> Vm::Impl::restore(StateFile& from) {
    pause(); // as it was when it was saved; nothing runs yet
    DOPPEL_TRY_VOID(io->check_disks(from.vm().disks));
    DOPPEL_TRY_VOID(from.load_ram(board->memory()));
    auto loaded = load_board(from.vm(), model, *board, engines());
    if (!loaded)
        return std::unexpected(std::move(loaded).error().with_context("the saved state"));
    return {};
}

/// A guest whose time has jumped by more than this is told, so that its watchdogs do not bite.
constexpr std::uint64_t kJumpNs = 1'000'000'000;

void Vm::Impl::go_on(const SavedClocks& then) {
    const auto now = inputs->calendar().now();
    const auto gap = (now.seconds - static_cast<std::int64_t>(then.wall_seconds)) * 1'000'000'000 +
                     (std::int64_t{now.nanoseconds} - std::int64_t{then.wall_nanoseconds});
    const bool catches_up = restore_clock == RestoreClock::CatchUp && gap > 0;
    const auto passed = catches_up ? static_cast<std::uint64_t>(gap) : 0;
    set_clocks(then, passed);
    board->loaded(passed > kJumpNs ? machine::Pc::Time::Jumped : machine::Pc::Time::WentOn);
    resume();
}

std::vector<cpu::x86::Vcpu*> Vm::Impl::engines() {
    std::vector<cpu::x86::Vcpu*> all;
    all.reserve(vcpus.size());
    for (auto& vcpu : vcpus)
        all.push_back(&vcpu->vcpu());
    return all;
}

SavedVm Vm::Impl::describe() {
    SavedVm vm;
    vm.writer = "doppel " DOPPEL_VERSION;
    vm.machine = api::machine_to_json(with_absolute_paths(description));
    const auto now = inputs->calendar().now();
    vm.clocks = {.vm_time_ns = inputs->timers().clock().now_ns(),
                 .tsc = inputs->tsc().read(),
                 .tsc_hz = inputs->tsc().frequency_hz(),
                 .wall_seconds = static_cast<std::uint64_t>(now.seconds),
                 .wall_nanoseconds = now.nanoseconds};
    save_board(*board, engines(), model, vm);
    vm.disks = io->record_disks();
    return vm;
}

void Vm::Impl::start_dirty_log() {
    board->memory().start_dirty_log();
    watch_all_writes();
}

std::vector<std::uint64_t> Vm::Impl::harvest_dirty_log() {
    auto pages = board->memory().harvest_dirty_log();
    watch_all_writes();
    return pages;
}

void Vm::Impl::watch_all_writes() {
    for (auto* const vcpu : engines())
        vcpu->drop_write_permissions();
}

Result<api::Job> Vm::Impl::save(const api::SaveRequest& request) {
    if (is_saving())
        return base::fail(base::Errc::Busy, "the VM is being saved already",
                          "wait until that is done");
    auto writer = DOPPEL_TRY(StateFileWriter::create(request.path));
    const bool was_paused = is_paused;
    pause();
    {
        const std::scoped_lock lock{outcome_mutex};
        if (has_outcome)
            return base::fail(base::Errc::Busy, "the VM is about to end");
    }
    stay_paused = was_paused;
    const bool in_rounds = !was_paused && !request.keep_paused;
    job = std::make_unique<SaveJob>(SaveJob::Request{++last_job, in_rounds, request.keep_paused},
                                    std::move(writer), *this, board->memory(), *loop);
    return job->describe();
}

/// The handshake: vCPUs, then the clocks with their timer thread, then the devices and with them
/// their backends. After it only the control thread touches guest memory or device state.
void Vm::Impl::pause() {
    if (!is_paused) {
        hold_all();
        for (auto& vcpu : vcpus)
            vcpu->wait_paused();
        inputs->pause();
        board->pause();
        is_paused = true;
    }
    reset_if_wanted(); // what is saved or reported now has obeyed the guest
}

void Vm::Impl::resume() {
    if (!is_paused)
        return;
    is_paused = false;
    board->resume();
    inputs->resume();
    const std::scoped_lock lock{outcome_mutex};
    if (!has_outcome)
        for (auto& vcpu : vcpus)
            vcpu->resume();
}

void Vm::Impl::reset_if_wanted() {
    if (!reset_wanted.exchange(false))
        return;
    inputs->reset();
    board->reset();
    if (const auto loaded = load(); !loaded) // the files changed under us
        end({Outcome::Kind::Failed, 0, loaded.error().message()});
}

void Vm::Impl::stop_threads() {
    for (auto& vcpu : vcpus)
        vcpu->stop();
}

/// The guest has stopped: its disks get what was in flight, and are closed.
Result<void> Vm::Impl::close_io() {
    if (!is_paused)
        board->pause();
    return io->close();
}

void Vm::Impl::on_exit(unsigned index, cpu::VmExit exit) {
    if (std::holds_alternative<cpu::ShutdownExit>(exit))
        end({Outcome::Kind::Crashed, 0, crash_report(index, vcpus[index]->vcpu())});
    else if (auto* error = std::get_if<cpu::ErrorExit>(&exit))
        end({Outcome::Kind::Failed, 0, error->error.message()});
    else if (std::holds_alternative<cpu::ResetExit>(exit))
        reset_requested();
}

Vm::Vm(std::unique_ptr<Impl> impl) : impl_{std::move(impl)} {}
Vm::~Vm() = default;

Result<std::unique_ptr<Vm>> Vm::create(const Machine& description, Inherited inherited) {
    auto impl = std::make_unique<Impl>(description);
    DOPPEL_TRY_VOID(impl->build(std::move(inherited)));
    return std::unique_ptr<Vm>{new Vm{std::move(impl)}};
}

Outcome Vm::run() {
    auto& vm = *impl_;
    vm.io->start();
    for (auto& vcpu : vm.vcpus)
        vcpu->start();
    if (vm.started) {
        const auto& name = vm.description.name;
        [[maybe_unused]] const auto told = ::write(vm.started.get(), name.data(), name.size());
        vm.started.reset();
    }
    if (vm.saved) {
        vm.go_on(vm.saved->vm().clocks);
        vm.saved.reset();
    } else
        for (auto& vcpu : vm.vcpus)
            vcpu->resume();
    vm.loop->run();
    vm.hold_all();
    for (auto& vcpu : vm.vcpus)
        vcpu->wait_paused();
    vm.console.backend->finish(std::chrono::seconds{2});
    vm.job.reset(); // it may be flushing the disks
    const auto closed = vm.close_io();
    if (vm.virtio_console.backend) // has been given now what the device had in hand
        vm.virtio_console.backend->finish(std::chrono::seconds{2});
    const std::scoped_lock lock{vm.outcome_mutex};
    if (!closed)
        vm.outcome = {Outcome::Kind::Failed, 0, closed.error().message()};
    return vm.outcome;
}

void Vm::stop() { impl_->end({Outcome::Kind::Stopped, 0, {}}); }

void Vm::pause() {
    impl_->pause();
    impl_->stay_paused = true;
}

Result<void> Vm::resume() {
    if (impl_->is_saving())
        return base::fail(base::Errc::Busy, "the VM is being saved", "wait until that is done");
    impl_->resume();
    return {};
}

bool Vm::is_paused() const { return impl_->is_paused; }
void Vm::press_power_button() { impl_->board->press_power_button(); }
Result<api::Job> Vm::save(const api::SaveRequest& request) { return impl_->save(request); }

std::optional<api::Job> Vm::job(std::uint64_t id) const {
    if (impl_->job == nullptr || impl_->job->id() != id)
        return std::nullopt;
    return impl_->job->describe();
}

api::VmStatus Vm::status() const {
    const auto& vm = *impl_;
    std::vector<std::string> forwards;
    for (const auto& net : vm.description.nets)
        forwards.insert(forwards.end(), net.forwards.begin(), net.forwards.end());
    return {.name = vm.description.name,
            .state = vm.is_saving() ? "saving"
                     : vm.is_paused ? "paused"
                                    : "running",
            .board = vm.description.board,
            .engine = std::string{vm.vcpus.front()->vcpu().engine_name()},
            .cpu_model = vm.description.cpu_model,
            .cpus = vm.description.cpus,
            .memory_bytes = vm.description.memory_bytes,
            .pid = static_cast<std::uint64_t>(::getpid()),
            .vm_time_ns = vm.inputs->timers().clock().now_ns(),
            .forwards = std::move(forwards)};
}
base::EventLoop& Vm::loop() { return *impl_->loop; }

base::Result<void> Vm::write_profile() {
    if (impl_->profile == nullptr)
        return {};
    for (const auto& vcpu : impl_->vcpus) {
        vcpu->request_pause();
        vcpu->wait_paused();
    }
    return impl_->profile->write(impl_->vcpus.front()->vcpu().state().lstar);
}

std::string Vm::statistics() const {
    std::vector<VcpuFigures> figures;
    for (const auto& vcpu : impl_->vcpus)
        figures.push_back({vcpu->vcpu().stats(), vcpu->vcpu().events(), vcpu->cpu_time_ns(),
                           vcpu->halt_sleeps()});
    return format_statistics(impl_->vcpus.front()->vcpu().engine_name(),
                             impl_->inputs->timers().clock().now_ns(), figures);
}

} // namespace doppel::vmm
