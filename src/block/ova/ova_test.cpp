// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <fmt/core.h>

#include "block/ova/manifest.hpp"
#include "block/ova/ova_node.hpp"
#include "block/ova/tar.hpp"
#include "block/test_rig.hpp"

using namespace doppel;
using namespace doppel::block;
using namespace doppel::block::ova;

namespace {

const std::string kOvf =
    "<?xml version='1.0'?>\n<!-- <Envelope> > -->\n"
    "<Envelope xmlns:o='x'><References>"
    "<o:File o:href='a &amp; b&#x2e;vmdk' o:id='f1'/>"
    "<o:File o:href=\"c.vmdk\" o:id=\"f2\" o:compression=\"gzip\"/></References>"
    "<o:DiskSection><o:Disk o:diskId='d1' o:fileRef='f1' o:capacity='3' "
    "o:capacityAllocationUnits='byte * 2^20' o:format='u#streamOptimized'/>"
    "<o:Disk o:diskId='d2' o:fileRef='f2' o:capacity='4096'/>"
    "<o:Disk o:diskId='d3' o:capacity='${size}'/></o:DiskSection></Envelope>";

/// A file of an archive: header and content in blocks.
std::string member(std::string_view name, std::string_view content, char type = '0') {
    std::string header(512, '\0');
    header.replace(0, std::min<std::size_t>(name.size(), 100), name.substr(0, 100));
    const auto size = fmt::format("{:011o}", content.size());
    header.replace(124, size.size(), size);
    header.replace(148, 8, "        ");
    header[156] = type;
    header.replace(257, 8, std::string_view{"ustar\00000", 8});
    unsigned sum = 0;
    for (const char c : header)
        sum += static_cast<unsigned char>(c);
    header.replace(148, 7, fmt::format("{:06o}", sum) + '\0');
    std::string body{content};
    body.resize((body.size() + 511) / 512 * 512);
    return header + body;
}

std::vector<std::byte> bytes_of(std::string_view text) {
    const auto bytes = std::as_bytes(std::span{text});
    return {bytes.begin(), bytes.end()};
}

struct World {
    std::unique_ptr<base::EventLoop> loop = base::EventLoop::create().value();
    std::unique_ptr<IoContext> context = IoContext::create(*loop, IoKind::Threads).value();
    test::PatternOpener opener;

    /// What is in an archive is shown as it is.
    static Task<std::unique_ptr<ImageNode>> inside(IoContext&, std::unique_ptr<Node> file,
                                                   ImageOptions) {
        return ready<std::unique_ptr<ImageNode>>(
            base::fail(Errc::Unsupported, "opened " + file->name()));
    }
    std::string complaint(const std::string& archive, const std::string& disk = {}) {
        OpenRequest request{
            context.get(), std::make_unique<MemoryNode>(bytes_of(archive)), {}, &opener};
        request.options.disk = disk;
        const auto node = context->wait(OvaNode::open(std::move(request), inside));
        return node ? "fine" : node.error().message();
    }
};

} // namespace

TEST_CASE("ova: the disks of a descriptor, whatever its prefixes and entities") {
    CHECK(is_ovf(kOvf));
    const auto disks = parse_ovf(kOvf).value();
    REQUIRE(disks.size() == 3);
    CHECK(disks[0].file == "a & b.vmdk");
    CHECK(disks[0].size_bytes == 3u << 20);
    CHECK(disks[1].compression == "gzip");
    CHECK(disks[1].size_bytes == 4096);
    CHECK(disks[2].file.empty());
    CHECK(disks[2].size_bytes == 0);
    CHECK(!parse_ovf("<Envelope><File id='a>").has_value());
    CHECK(!parse_ovf("<other/>").has_value());
    CHECK(!parse_ovf("<Envelope><Disk fileRef='none'/></Envelope>").has_value());
}

TEST_CASE("ova: the files of an archive, with long names of GNU and pax") {
    World world;
    const std::string long_name = std::string(150, 'n') + ".ovf";
    MemoryNode archive{bytes_of(member("@", long_name, 'L') + member("short", "one") +
                                member("pax", "19 path=dir/b.vmdk\n", 'x') + member("b", "second") +
                                member("dir/", "", '5') + member("c", "3") +
                                std::string(1024, '\0'))};
    const auto members = world.context->wait(list_members(archive)).value();
    REQUIRE(members.size() == 3);
    CHECK(members[0].name == long_name);
    CHECK(members[1].name == "dir/b.vmdk");
    CHECK(members[1].size_bytes == 6);
    MemberNode second{archive, members[1]};
    std::vector<std::byte> got(8, std::byte{1});
    REQUIRE(world.context->wait(second.read(1, IoBuffer{got})));
    CHECK(got == bytes_of(std::string_view{"econd\0\0\0", 8}));
}

TEST_CASE("ova: an archive that is damaged or cut short is one sentence") {
    World world;
    const auto whole = member("a.ovf", kOvf);
    CHECK(world.complaint(whole.substr(0, 600)).find("cut short") != std::string::npos);
    auto damaged = whole + member("b", "b");
    damaged[whole.size() + 3] = 'x';
    CHECK(world.complaint(damaged).find("damaged at") != std::string::npos);
    CHECK(world.complaint(member("a.txt", "")).find("no OVF descriptor") != std::string::npos);
}

TEST_CASE("ova: a disk is chosen by its file or its id, or is the only one") {
    World world;
    const auto archive = member("a.ovf", kOvf) + member("a & b.vmdk", "x") + member("c.vmdk", "y");
    CHECK(world.complaint(archive).find("2 disks: a & b.vmdk, c.vmdk") != std::string::npos);
    CHECK(world.complaint(archive, "d1").find("opened memory:a & b.vmdk") != std::string::npos);
    CHECK(world.complaint(archive, "c.vmdk").find("compressed by gzip") != std::string::npos);
    CHECK(world.complaint(archive, "d3").find("holds no disk 'd3'") != std::string::npos);
    CHECK(world.complaint(member("a.ovf", kOvf), "d1").find("lacks the file") != std::string::npos);
}

TEST_CASE("ova: a manifest's lines") {
    const auto lines = parse_manifest("SHA256(a b.ovf)= AB12\r\n\nSHA-1(c)=00\n").value();
    REQUIRE(lines.size() == 2);
    CHECK(lines[0].file == "a b.ovf");
    CHECK(lines[0].digest == "ab12");
    CHECK(lines[1].algorithm == "SHA1");
    CHECK(!parse_manifest("what is this\n").has_value());
}
