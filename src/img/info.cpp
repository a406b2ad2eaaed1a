// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cstdio>
#include <ctime>

#include <fmt/core.h>

#include "base/printable.hpp"
#include "img/images.hpp"
#include "img/json.hpp"
#include "img/snapshot_list.hpp"

namespace doppel::img {

namespace {

constexpr std::array kFlags{
    Flag{"f", "FORMAT", "format of the image [found out]"},
    Flag{"U", "", "do not lock: look at an image that is in use", "force-share"},
    Flag{"backing-chain", "", "all images of the chain, the top first"},
    Flag{"output", "human|json", "form of the output"},
    Flag{"disk", "NAME", "of a package with several disks: which"},
    Flag{"object", "TYPE,id=ID,…", "a secret for an encrypted image, or another object"},
    Flag{"image-opts", "", "the name is a list: driver=qcow2,file.filename=FILE"},
};

struct Fact {
    std::string path;
    block::OpenedImage image;
    block::ImageInfo info;
    std::vector<block::SnapshotInfo> snapshots;
};

void print_bitmaps_json(Json& json, const std::vector<block::BitmapInfo>& bitmaps) {
    json.begin_array("bitmaps");
    for (const auto& bitmap : bitmaps) {
        json.begin_object();
        json.begin_array("flags");
        if (bitmap.inconsistent)
            json.text({}, "in-use");
        if (bitmap.recording)
            json.text({}, "auto");
        json.end_array();
        json.text("name", bitmap.name);
        json.number("granularity", bitmap.granularity_bytes);
        json.end_object();
    }
    json.end_array();
}

void print_extents_json(Json& json, const std::string& key,
                        const std::vector<block::ExtentInfo>& extents) {
    json.begin_array(key);
    for (const auto& extent : extents) {
        json.begin_object();
        if (extent.compressed)
            json.flag("compressed", true);
        json.number("virtual-size", extent.size_bytes);
        json.text("filename", extent.file);
        if (extent.cluster_bytes != 0)
            json.number("cluster-size", extent.cluster_bytes);
        json.text("format", extent.format);
        json.end_object();
    }
    json.end_array();
}

void print_slots_json(Json& json, const std::vector<block::KeySlotInfo>& slots) {
    json.begin_array("slots");
    for (const auto& slot : slots) {
        json.begin_object();
        json.flag("active", slot.active);
        if (slot.active)
            json.number("iters", slot.rounds);
        json.number("key-offset", slot.key_offset);
        if (slot.active)
            json.number("stripes", slot.stripes);
        json.end_object();
    }
    json.end_array();
}

/// With a name, a member of the format's facts; else all of them.
void print_encryption_json(Json& json, const std::string& key, const block::EncryptionInfo& info) {
    if (!key.empty()) {
        json.begin_object(key);
        json.text("format", "luks");
    }
    json.text("cipher-alg", info.cipher);
    json.text("cipher-mode", info.cipher_mode);
    json.text("ivgen-alg", info.iv_algorithm);
    if (!info.iv_hash.empty())
        json.text("ivgen-hash-alg", info.iv_hash);
    json.text("hash-alg", info.hash);
    json.number("payload-offset", info.payload_offset);
    json.number("master-key-iters", info.master_key_rounds);
    json.text("uuid", info.uuid);
    print_slots_json(json, info.slots);
    if (!key.empty())
        json.end_object();
}

void print_facts_json(Json& json, const Fact& fact) {
    if (fact.info.facts.empty())
        return;
    json.begin_object("format-specific");
    json.text("type", fact.image.format->name);
    json.begin_object("data");
    for (const auto& [key, value] : fact.info.facts) {
        if (const auto* flag = std::get_if<bool>(&value))
            json.flag(key, *flag);
        else if (const auto* number = std::get_if<std::uint64_t>(&value))
            json.number(key, *number);
        else if (const auto* text = std::get_if<std::string>(&value))
            json.text(key, *text);
        else if (const auto* extents = std::get_if<std::vector<block::ExtentInfo>>(&value))
            print_extents_json(json, key, *extents);
        else if (const auto* encryption = std::get_if<block::EncryptionInfo>(&value))
            print_encryption_json(json, key, *encryption);
        else
            print_bitmaps_json(json, std::get<std::vector<block::BitmapInfo>>(value));
    }
    json.end_object();
    json.end_object();
}

void print_json(Json& json, const Fact& fact) {
    const auto& node = *fact.image.node;
    json.begin_object();
    if (!fact.snapshots.empty())
        snapshots_json(json, fact.snapshots);
    json.number("virtual-size", node.size());
    json.text("filename", fact.path);
    if (fact.info.cluster_bytes != 0)
        json.number("cluster-size", fact.info.cluster_bytes);
    json.text("format", fact.image.format->name);
    if (const auto actual = node.allocated_bytes())
        json.number("actual-size", *actual);
    if (fact.info.encrypted)
        json.flag("encrypted", true);
    if (fact.info.compressed)
        json.flag("compressed", true);
    print_facts_json(json, fact);
    if (!fact.info.backing_file.empty()) {
        json.text("backing-filename", fact.info.backing_file);
        json.text("full-backing-filename", backing_path(fact.info.backing_file, fact.path));
        if (!fact.info.backing_format.empty())
            json.text("backing-filename-format", fact.info.backing_format);
    }
    json.flag("dirty-flag", fact.info.dirty);
    json.end_object();
}

void print_encryption(const std::string& key, const block::EncryptionInfo& info) {
    const auto* indent = key.empty() ? "    " : "        ";
    if (!key.empty())
        fmt::print("    {}:\n{}format: luks\n", key, indent);
    const auto line = [&](const char* name, const auto& value) {
        fmt::print("{}{}: {}\n", indent, name, value);
    };
    line("cipher alg", info.cipher);
    line("cipher mode", info.cipher_mode);
    line("ivgen alg", info.iv_algorithm);
    if (!info.iv_hash.empty())
        line("ivgen hash alg", info.iv_hash);
    line("hash alg", info.hash);
    line("payload offset", info.payload_offset);
    line("master key iters", info.master_key_rounds);
    line("uuid", info.uuid);
    fmt::print("{}slots:\n", indent);
    for (std::size_t i = 0; i < info.slots.size(); ++i)
        if (info.slots[i].active)
            fmt::print("{}    [{}]: in use, {} iters, key offset {}\n", indent, i,
                       info.slots[i].rounds, info.slots[i].key_offset);
        else
            fmt::print("{}    [{}]: free\n", indent, i);
}

void print_fact_line(const std::string& key, const block::FactValue& value) {
    std::string name = key;
    for (auto& c : name)
        c = c == '-' ? ' ' : c;
    if (const auto* flag = std::get_if<bool>(&value))
        fmt::print("    {}: {}\n", name, *flag ? "true" : "false");
    else if (const auto* number = std::get_if<std::uint64_t>(&value))
        fmt::print("    {}: {}\n", name, *number);
    else if (const auto* text = std::get_if<std::string>(&value))
        fmt::print("    {}: {}\n", name, base::printable(*text));
    else if (const auto* extents = std::get_if<std::vector<block::ExtentInfo>>(&value))
        for (const auto& extent : *extents)
            fmt::print("    {}: {}{}{}, {}{}\n", name.substr(0, name.size() - 1),
                       base::printable(extent.file), extent.format.empty() ? "" : " ",
                       extent.format, human_size(extent.size_bytes),
                       extent.compressed ? ", compressed" : "");
    else if (const auto* encryption = std::get_if<block::EncryptionInfo>(&value))
        print_encryption(key, *encryption);
    else
        for (const auto& bitmap : std::get<std::vector<block::BitmapInfo>>(value))
            fmt::print("    bitmap: {}, granularity {}{}{}\n", base::printable(bitmap.name),
                       human_size(bitmap.granularity_bytes),
                       bitmap.recording ? ", recording" : ", not recording",
                       bitmap.inconsistent ? ", inconsistent" : "");
}

void print_human(const Fact& fact) {
    const auto& node = *fact.image.node;
    fmt::print("image: {}\n", fact.path);
    fmt::print("file format: {}{}\n", fact.image.format->name,
               fact.image.probed ? " (found out from its content)" : "");
    fmt::print("virtual size: {} ({} bytes)\n", human_size(node.size()), node.size());
    if (const auto actual = node.allocated_bytes()) {
        const auto share = node.size() == 0 ? 0.0
                                            : 100.0 * static_cast<double>(*actual) /
                                                  static_cast<double>(node.size());
        fmt::print("disk size: {} ({:.0f} % of the virtual size)\n", human_size(*actual), share);
    }
    if (fact.info.encrypted)
        fmt::print("encrypted: yes\n");
    if (fact.info.cluster_bytes != 0)
        fmt::print("cluster_size: {}\n", fact.info.cluster_bytes);
    if (!fact.info.backing_file.empty()) {
        const auto named = base::printable(fact.info.backing_file);
        const auto full = base::printable(backing_path(fact.info.backing_file, fact.path));
        fmt::print("backing file: {}{}\n", named,
                   full == named ? "" : fmt::format(" (actual path: {})", full));
    }
    if (!fact.info.backing_format.empty())
        fmt::print("backing file format: {}\n", base::printable(fact.info.backing_format));
    if (fact.info.dirty)
        fmt::print("cleanly shut down: no\n");
    if (fact.info.corrupt)
        fmt::print("state: marked corrupt; repair it with check -r all\n");
    if (!fact.snapshots.empty())
        fmt::print("{}", snapshots_text(fact.snapshots));
    if (!fact.info.facts.empty())
        fmt::print("Format specific information:\n");
    for (const auto& [key, value] : fact.info.facts)
        print_fact_line(key, value);
}

Result<Fact> look_at(Session& session, const std::string& path, const OpenFlags& flags) {
    Fact fact;
    fact.path = path;
    fact.image = DOPPEL_TRY(open_named(session, path, flags));
    fact.path = fact.image.node->name();
    fact.info = fact.image.node->info();
    fact.snapshots = DOPPEL_TRY(session.context.wait(fact.image.node->list_snapshots()));
    return fact;
}

Result<int> run(Session& session) {
    const auto& arguments = session.arguments;
    DOPPEL_TRY_VOID(arguments.expect(1, 1, "FILE"));
    const auto output = arguments.get("output", "human");
    auto flags = open_flags(arguments, block::Access::ReadOnly);
    flags.backing = false; // nothing but the named file is opened
    flags.unlock = false;  // its data is not looked at
    std::vector<Fact> chain;
    chain.push_back(DOPPEL_TRY(look_at(session, arguments.positional()[0], flags)));
    while (arguments.has("backing-chain") && !chain.back().info.backing_file.empty()) {
        if (chain.size() >= block::kMaxChainDepth)
            return base::fail(Errc::Unsupported,
                              "the chain of backing files is a loop or too long");
        const auto& above = chain.back();
        flags.format = above.info.backing_format;
        chain.push_back(
            DOPPEL_TRY(look_at(session, backing_path(above.info.backing_file, above.path), flags)));
    }
    Json json;
    if (arguments.has("backing-chain"))
        json.begin_array();
    for (std::size_t i = 0; i < chain.size(); ++i) {
        if (output == "json")
            print_json(json, chain[i]);
        else
            print_human(chain[i]);
        if (output == "human" && i + 1 < chain.size())
            fmt::print("\n");
    }
    if (arguments.has("backing-chain"))
        json.end_array();
    if (output == "json")
        std::fputs(json.take().c_str(), stdout);
    return 0;
}

constexpr Command kCommand{"info",
                           "[-f FORMAT] [-U] [--backing-chain] [--output=json] FILE",
                           "say what an image is, how large, how full, what it depends on",
                           {},
                           kFlags,
                           run};

} // namespace

const Command& info_command() { return kCommand; }

} // namespace doppel::img
