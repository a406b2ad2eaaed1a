// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <chrono>
#include <filesystem>
#include <fstream>

#include "base/test_folder.hpp"
#include "vmm/kvm_verdict.hpp"

using namespace doppel::vmm;

namespace {

/// A self-test that is a line of shell, and a cache of its own.
struct Rig {
    doppel::base::TestFolder own{"doppel-verdict"};
    std::filesystem::path folder = own.path();
    KvmVerdictSource source;

    Rig() {
        source.key = "1 this-boot 6.1";
        source.cache_file = folder / "doppel" / "kvm-self-test";
    }
    KvmVerdict ask(const std::string& script) {
        source.command = {"/bin/sh", "-c",
                          "echo x >> " + (folder / "runs").string() + ";" + script};
        return kvm_verdict(source);
    }
    std::uintmax_t runs() const {
        return std::filesystem::exists(folder / "runs")
                   ? std::filesystem::file_size(folder / "runs") / 2
                   : 0;
    }
};

} // namespace

TEST_CASE_FIXTURE(Rig, "a verdict is asked for once per boot, kernel and modules") {
    CHECK(ask("echo good").runs_kernels);
    CHECK(ask("echo bad later").runs_kernels); // as kept
    CHECK(runs() == 1);
    source.key = "1 next-boot 6.1";
    const auto verdict = ask("echo bad in ring 0 it fails at int3");
    CHECK_FALSE(verdict.runs_kernels);
    CHECK(verdict.reason == "in ring 0 it fails at int3");
    CHECK(runs() == 2);
    CHECK(ask("echo good").reason == "in ring 0 it fails at int3");
}

TEST_CASE_FIXTURE(Rig, "a self-test that hangs is killed and counts as a no, which is kept") {
    source.patience = std::chrono::milliseconds{200};
    const auto before = std::chrono::steady_clock::now();
    CHECK(ask("exec sleep 60").reason.find("hangs") != std::string::npos);
    CHECK(std::chrono::steady_clock::now() - before < std::chrono::seconds{30});
    CHECK_FALSE(ask("echo good").runs_kernels);
    CHECK(runs() == 1);
}

TEST_CASE_FIXTURE(Rig, "one that dies, talks nonsense or is not there is a no that is not kept") {
    CHECK(ask("kill -9 $$").reason.find("dies") != std::string::npos);
    CHECK(ask("echo maybe").reason.find("dies") != std::string::npos);
    source.command = {"/nonexistent/self-test"};
    CHECK(kvm_verdict(source).reason.find("cannot be started") != std::string::npos);
    CHECK(ask("echo good").runs_kernels);
}

TEST_CASE_FIXTURE(Rig, "a damaged or unwritable cache only costs another self-test") {
    std::filesystem::create_directories(folder / "doppel");
    std::ofstream{source.cache_file} << source.key << "\nperhaps\n";
    CHECK(ask("echo good").runs_kernels);
    source.cache_file = "/proc/nowhere/kvm-self-test";
    CHECK(ask("echo good").runs_kernels);
    CHECK(runs() == 2);
}

TEST_CASE("the key names the boot and the kernel") {
    const auto source = default_verdict_source();
    std::ifstream file{"/proc/sys/kernel/random/boot_id"};
    std::string boot;
    std::getline(file, boot);
    REQUIRE_FALSE(boot.empty());
    CHECK(source.key.find(boot) != std::string::npos);
}
