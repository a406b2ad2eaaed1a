// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <fstream>
#include <string>
#include <vector>

#include "base/test_folder.hpp"
#include "block/image/open_image.hpp"

using namespace doppel;
using namespace doppel::block;

namespace {

struct Rig {
    std::string file(const std::string& name, const std::string& content) const {
        std::ofstream{folder / name} << content;
        return folder / name;
    }
    base::TestFolder folder{"open-image"};
    std::unique_ptr<base::EventLoop> loop = base::EventLoop::create().value();
    std::unique_ptr<IoContext> context = IoContext::create(*loop).value();
};

} // namespace

TEST_CASE("a file like nothing else is raw, and a drive reads and writes it") {
    const Rig rig;
    const auto path = rig.file("disk", std::string(1024, 'd'));
    ImageOptions options;
    options.access = Access::ReadWrite;
    auto drive = open_drive(*rig.context, path, options).value();
    CHECK(drive->size() == 1024);
    std::vector<std::byte> bytes(4, std::byte{'w'});
    bool written = false;
    drive->write(2, IoBuffer::of(bytes), Durability::Durable, [&](const Result<void>& result) {
        written = result.has_value();
        drive->read(0, IoBuffer{bytes}, [&](const Result<void>&) { rig.loop->stop(); });
    });
    rig.loop->run();
    CHECK(written);
    CHECK(bytes == std::vector{std::byte{'d'}, std::byte{'d'}, std::byte{'w'}, std::byte{'w'}});
}

TEST_CASE("an unknown format is refused with the list of those there are") {
    const Rig rig;
    ImageOptions options;
    options.format = "qcow9";
    const auto image = rig.context->wait(open_image(*rig.context, rig.file("disk", "x"), options));
    REQUIRE(!image.has_value());
    CHECK(image.error().message().starts_with("image format 'qcow9' is unknown; Known are: raw"));
}
