// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What the tests of formats share: any format of the table on a simulated disk.
#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/test_folder.hpp"
#include "block/format.hpp"
#include "block/memory/memory_node.hpp"
#include "block/memory/sim_disk.hpp"

namespace doppel::block::test {

/// A form of a format: how large, how created; whether something stands behind it.
struct Form {
    const char* name;
    std::uint64_t size;
    OptionValues options;
    bool backed = false;
    std::uint64_t window = 0;            // of power cuts: from here to the end they write and look
    bool resized = true;                 // by power cuts
    std::vector<OptionValues> amended{}; // by power cuts, one at a time
};

inline std::vector<std::byte> random_bytes(std::mt19937& random, std::size_t size) {
    std::vector<std::byte> bytes(size);
    for (auto& byte : bytes)
        byte = static_cast<std::byte>(random());
    return bytes;
}

inline void keep(const std::string& path, const std::vector<std::byte>& bytes,
                 std::uint64_t offset = 0) {
    std::ofstream file{path, std::ios::binary};
    file.seekp(static_cast<std::streamoff>(offset));
    file.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
}

/// A number that the environment may set.
inline int wanted(const char* variable, int standard) {
    const char* text = std::getenv(variable);
    return text != nullptr ? std::atoi(text) : standard;
}

constexpr const char* kPassphrase = "open sesame";

class Passphrase final : public SecretSource {
public:
    Result<Secret> secret(const std::string&) const override {
        return Secret::of(std::string_view{kPassphrase});
    }
};

/// What stands behind images that have something there: any name opens it. Parts lie on the disk.
class PatternOpener final : public ImageOpener {
public:
    Task<std::unique_ptr<Node>> open_backing(std::string, std::string, std::string,
                                             ImageOptions) override {
        return ready<std::unique_ptr<Node>>(std::make_unique<MemoryNode>(behind));
    }
    Result<std::unique_ptr<Node>> open_part(const std::string& written, const std::string&,
                                            const ImageOptions&) override {
        return disk->open(written);
    }
    Result<std::unique_ptr<Node>> create_part(const std::string& name) override {
        return disk->open(name);
    }
    std::vector<std::byte> behind;
    SimDisk* disk = nullptr;
};

struct Rig {
    explicit Rig(const Format& format_of) : format{format_of} {}
    const Format& format;
    std::unique_ptr<base::EventLoop> loop = base::EventLoop::create().value();
    std::unique_ptr<IoContext> context = IoContext::create(*loop, IoKind::Threads).value();
    PatternOpener opener;
    Passphrase passphrase;
    base::TestFolder folder{"doppel-format"};

    template <typename T> Result<T> wait(Task<T> task) { return context->wait(std::move(task)); }

    std::string path(const std::string& name) const { return folder / name; }
    /// A file of this format that a differencing image can take its parent's identity from.
    void make_parent(std::uint64_t size) {
        auto file = FileNode::create(*context, path("parent." + std::string{format.name})).value();
        REQUIRE(wait(format.create({context.get(), std::move(file), size, {}, &opener})));
    }

    std::vector<std::byte> create(SimDisk& disk, const Form& form) {
        auto options = form.options;
        disk.call(path("disk." + std::string{format.name}));
        if (form.backed) {
            make_parent(form.size);
            options["backing_file"] = "parent." + std::string{format.name};
        }
        opener.disk = &disk;
        CreateRequest request{context.get(), disk.open(), form.size, options, &opener};
        request.published_name = "disk." + std::string{format.name};
        request.secrets = &passphrase;
        const auto made = wait(format.create(std::move(request)));
        if (!made)
            FAIL(std::string{form.name} << ": " << made.error().message());
        std::vector<std::byte> shown(form.size - form.window);
        opener.behind.clear();
        if (form.backed) { // whole sectors of a number that no history uses
            opener.behind.resize(form.size * 3 / 4 / 512 * 512, std::byte{0xee});
            std::ranges::copy(opener.behind, shown.begin());
        }
        return shown;
    }
    Result<std::unique_ptr<ImageNode>> open(SimDisk& disk, Access access = Access::ReadWrite) {
        opener.disk = &disk;
        disk.call(path("disk." + std::string{format.name}));
        OpenRequest request{context.get(), disk.open(), {}, &opener};
        request.options.access = access;
        request.options.secrets = &passphrase;
        for (const auto& option : format.open_options)
            if (option.name.ends_with("key-secret"))
                request.options.driver[std::string{option.name}] = "secret";
        return wait(format.open(std::move(request)));
    }
};

} // namespace doppel::block::test
