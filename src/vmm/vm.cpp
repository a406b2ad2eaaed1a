// SPDX-License-Identifier: Apache-2.0
#include "vmm/vm.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <vector>

#include <fmt/core.h>

#include "base/event_loop.hpp"
#include "base/log.hpp"
#include "base/mapped_file.hpp"
#include "description/host_cpu.hpp"
#include "machine/pc.hpp"
#include "vmm/console.hpp"
#include "vmm/crash_report.hpp"
#include "vmm/engine.hpp"
#include "vmm/inputs.hpp"
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

} // namespace

/// Members in order of construction; destruction is the reverse: threads end before the board does.
struct Vm::Impl final : machine::PowerSink {
    explicit Impl(const Machine& machine) : description{machine} {}
    ~Impl() override {
        stop_threads();
        if (board)
            board->disconnect();
    }

    Machine description;
    description::CpuModel model;
    BootFiles files;
    base::UniqueFd started;
    std::unique_ptr<base::EventLoop> loop;
    OpenConsole console;
    std::unique_ptr<Inputs> inputs;
    std::unique_ptr<machine::Pc> board;
    std::unique_ptr<EngineFactory> engine;
    std::unique_ptr<Turns> turns; // in virtual time
    std::vector<std::unique_ptr<VcpuThread>> vcpus;
    bool is_paused = false;                // control thread
    std::atomic<bool> reset_wanted{false}; // by the guest; done as soon as the VM is paused

    std::mutex outcome_mutex;
    bool has_outcome = false; // guarded by outcome_mutex; the first one counts
    Outcome outcome;          // guarded by outcome_mutex

    Result<void> build(Inherited inherited);
    Result<void> create_vcpus();
    Result<void> load();
    base::Error in_kernel(base::Error error) const {
        return std::move(error).with_context("kernel '" + description.boot.kernel + "'");
    }
    void pause();
    void resume();
    void reset_if_wanted();
    void stop_threads();

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
    files = DOPPEL_TRY(open_boot_files(description.boot));
    if (auto format = firmware::detect_kernel(files.kernel.bytes()); !format)
        return std::unexpected(in_kernel(std::move(format).error()));
    started = std::move(inherited.started);
    loop = DOPPEL_TRY(base::EventLoop::create());
    console = DOPPEL_TRY(open_console(description.console, *loop, std::move(inherited.console)));
    inputs = Inputs::create(description.time, *console.backend);
    const machine::PcHost host{
        inputs->timers(), inputs->calendar(), inputs->tsc(), inputs->console(), *this, model,
        inputs->meter(),  inputs->entropy()};
    board = DOPPEL_TRY(machine::Pc::create(
        {description.memory_bytes, description.cpus, description.debug_exit_port}, host));
    engine = DOPPEL_TRY(create_engine(description, board->memory()));
    DOPPEL_TRY_VOID(create_vcpus());
    return load();
}

Result<void> Vm::Impl::create_vcpus() {
    if (auto* const virtual_inputs = inputs->in_virtual_time())
        turns = std::make_unique<Turns>(*virtual_inputs, description.cpus);
    for (unsigned i = 0; i < description.cpus; ++i) {
        auto vcpu = DOPPEL_TRY(engine->create_vcpu(board->wiring(i)));
        vcpus.push_back(std::make_unique<VcpuThread>(
            i, std::move(vcpu),
            [this](unsigned index, cpu::VmExit exit) { on_exit(index, std::move(exit)); },
            turns.get()));
        board->connect(i, *vcpus.back(), vcpus.back()->vcpu().state());
    }
    if (auto apics = engine->apic_host())
        board->host_apics(std::move(apics));
    return {};
}

Result<void> Vm::Impl::load() {
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
    board->reset();
    if (const auto loaded = load(); !loaded) // the files changed under us
        end({Outcome::Kind::Failed, 0, loaded.error().message()});
}

void Vm::Impl::stop_threads() {
    for (auto& vcpu : vcpus)
        vcpu->stop();
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
    for (auto& vcpu : vm.vcpus)
        vcpu->start();
    if (vm.started) {
        [[maybe_unused]] const auto told = ::write(vm.started.get(), "", 1);
        vm.started.reset();
    }
    for (auto& vcpu : vm.vcpus)
        vcpu->resume();
    vm.loop->run();
    vm.hold_all();
    for (auto& vcpu : vm.vcpus)
        vcpu->wait_paused();
    vm.console.backend->finish(std::chrono::seconds{2});
    const std::scoped_lock lock{vm.outcome_mutex};
    return vm.outcome;
}

void Vm::stop() { impl_->end({Outcome::Kind::Stopped, 0, {}}); }
void Vm::pause() { impl_->pause(); }
void Vm::resume() { impl_->resume(); }
bool Vm::is_paused() const { return impl_->is_paused; }
base::EventLoop& Vm::loop() { return *impl_->loop; }

std::string Vm::statistics() const {
    std::vector<VcpuFigures> figures;
    for (const auto& vcpu : impl_->vcpus)
        figures.push_back({vcpu->vcpu().stats(), vcpu->vcpu().events(), vcpu->cpu_time_ns(),
                           vcpu->halt_sleeps()});
    return format_statistics(impl_->vcpus.front()->vcpu().engine_name(),
                             impl_->inputs->timers().clock().now_ns(), figures);
}

} // namespace doppel::vmm
