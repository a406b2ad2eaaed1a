// SPDX-License-Identifier: Apache-2.0
/// A LUKS header guards its key with a passphrase, which no fuzzer finds: the image is a valid one
/// of ours, and the input a list of damages to it (a u16 offset, a byte that is put there; offsets
/// past the header end the file).
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cstdlib>

#include "../image_fuzz.hpp"
#include "base/bytes.hpp"
#include "base/test_folder.hpp"
#include "block/luks/luks_node.hpp"

using namespace doppel;
using namespace doppel::block;

namespace {

constexpr std::uint64_t kDiskBytes = 64u << 10;
constexpr std::size_t kHeaderBytes = 592; // LUKS1 On-Disk Format 1.2.3, table 1
constexpr std::size_t kRecord = 3;
constexpr std::size_t kDigestRounds = 164;
constexpr std::size_t kFirstSlot = 208;
constexpr std::size_t kSlotBytes = 48;
constexpr std::uint32_t kMostRounds = 1000; // more take time and show nothing

class Known final : public SecretSource {
public:
    base::Result<Secret> secret(const std::string&) const override { return Secret::of("known"); }
};

std::vector<std::byte> read_all(const std::string& path) {
    std::vector<std::byte> bytes(4u << 20);
    const base::UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    const auto got = ::read(fd.get(), bytes.data(), bytes.size());
    bytes.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
    return bytes;
}

std::vector<std::byte> valid_image(const SecretSource& secrets) {
    const auto loop = base::EventLoop::create().value();
    const auto context = IoContext::create(*loop, IoKind::Threads).value();
    const base::TestFolder folder{"doppel-fuzz"};
    const auto path = folder / "luks";
    fuzz::Opener opener;
    CreateRequest request{context.get(),
                          FileNode::create(*context, path).value(),
                          kDiskBytes,
                          {{"key-secret", "known"}, {"iter-time", "1"}},
                          &opener};
    request.secrets = &secrets;
    if (!context->wait(luks::format().create(std::move(request))))
        std::abort();
    return read_all(path);
}

ImageOptions unlocked_by(const SecretSource& secrets) {
    ImageOptions options;
    options.driver = {{"key-secret", "known"}};
    options.secrets = &secrets;
    return options;
}

void limit_rounds(std::vector<std::byte>& image, std::size_t at) {
    if (at + 4 <= image.size() && base::load_be<std::uint32_t>(image.data() + at) > 2 * kMostRounds)
        base::store_be(image.data() + at, kMostRounds);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const Known secrets;
    static const auto valid = valid_image(secrets);
    static fuzz::World world{luks::format(), unlocked_by(secrets)};
    auto image = valid;
    for (std::size_t at = 0; at + kRecord <= size; at += kRecord) {
        const std::size_t offset = base::load_le<std::uint16_t>(data + at);
        if (offset < kHeaderBytes && offset < image.size())
            image[offset] = static_cast<std::byte>(data[at + 2]);
        else
            image.resize(std::min(image.size(), (offset << 8) + data[at + 2]));
    }
    limit_rounds(image, kDigestRounds);
    for (std::size_t slot = 0; slot < 8; ++slot)
        limit_rounds(image, kFirstSlot + slot * kSlotBytes + 4);
    world.run(image);
    return 0;
}
