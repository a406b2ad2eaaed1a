// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Writes down each piece of generated code in the "jitdump" format of Linux perf, version 1
/// (tools/perf/Documentation/jitdump-specification.txt), so that `perf inject --jit` gives samples
/// in translated code a name and `perf annotate` shows the host code. One thread at a time.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/result.hpp"

namespace doppel::cpu::translator {

class JitDump {
public:
    /// Makes DIRECTORY/jit-PID.dump, the name that perf looks for. Errors: Io, with the path.
    static base::Result<std::unique_ptr<JitDump>> create(const std::string& directory);
    ~JitDump();
    JitDump(const JitDump&) = delete;
    JitDump& operator=(const JitDump&) = delete;

    /// `code` is executable where it stands. When the disk is full the rest is left out.
    void add(std::string_view name, std::span<const std::uint8_t> code);
    const std::string& path() const { return path_; }

private:
    JitDump(std::string path, std::FILE* file) : path_{std::move(path)}, file_{file} {}

    std::string path_;
    std::FILE* file_;
    void* marker_ = nullptr; // the mapping that tells perf of the file
    std::uint64_t count_ = 0;
};

} // namespace doppel::cpu::translator
