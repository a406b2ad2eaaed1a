// SPDX-License-Identifier: Apache-2.0
/// Checking, another size, another parent.
#include <algorithm>

#include <fmt/core.h>

#include "block/all_or_nothing.hpp"
#include "block/clustered/parent.hpp"
#include "block/file/file_node.hpp"
#include "block/vmdk/vmdk_node.hpp"

namespace doppel::block::vmdk {

namespace {

constexpr std::uint64_t kMaxSplitBytes = std::uint64_t{2} << 30; // twoGbMaxExtent…

void add(CheckResult& sum, const CheckResult& part) {
    sum.corruptions += part.corruptions;
    sum.leaks += part.leaks;
    sum.check_errors += part.check_errors;
    sum.corruptions_fixed += part.corruptions_fixed;
    sum.leaks_fixed += part.leaks_fixed;
    sum.image_end_offset += part.image_end_offset;
    sum.total_clusters += part.total_clusters;
    sum.allocated_clusters += part.allocated_clusters;
    sum.fragmented_clusters += part.fragmented_clusters;
    sum.compressed_clusters += part.compressed_clusters;
    for (const auto& finding : part.findings)
        if (sum.findings.size() < CheckResult::kMaxFindings)
            sum.findings.push_back(finding);
}

/// Reading it is enough, whoever uses it.
Task<std::uint32_t> cid_of(IoContext& context, std::string image, std::string written) {
    FileOptions options;
    options.sharing = Sharing::Forced;
    DOPPEL_CO_TRY(file, FileNode::open(context, beside(image, written), options));
    DOPPEL_AWAIT(descriptor, read_descriptor(*file));
    co_return descriptor.cid;
}

} // namespace

Task<CheckResult> VmdkNode::check(Repair repair) {
    CheckResult result;
    for (auto& part : parts_) {
        DOPPEL_AWAIT(one, part.node->check(repair));
        add(result, one);
    }
    if (!size_differs())
        co_return result;
    ++result.leaks; // the extent itself is right: no data depend on it
    result.findings.push_back(fmt::format("the descriptor says {} sectors, the extent has {}",
                                          descriptor_.extents.back().sectors,
                                          parts_.back().node->size() / kSector));
    if (repair == Repair::None || result.corruptions != 0)
        co_return result;
    DOPPEL_AWAIT_VOID(write_descriptor(resized_descriptor(size_bytes_)));
    ++result.leaks_fixed;
    co_return result;
}

/// Whether a power cut came between the last extent and the descriptor when the disk was resized:
/// the header of a sparse extent decides.
bool VmdkNode::size_differs() const {
    return !parts_.empty() && parts_.back().sparse != nullptr && !descriptor_.extents.empty() &&
           descriptor_.extents.back().sectors * kSector != parts_.back().node->size();
}

/// The last extent ends where the disk now ends.
std::string VmdkNode::resized_descriptor(std::uint64_t size_bytes) const {
    auto extents = descriptor_.extents;
    const auto sectors = size_bytes / kSector;
    std::uint64_t before = 0;
    for (std::size_t i = 0; i + 1 < extents.size(); ++i)
        before += extents[i].sectors;
    if (!extents.empty())
        extents.back().sectors = sectors - std::min(sectors, before);
    auto text = with_extents(descriptor_.text, extents);
    const bool ide = text.find("\"ide\"") != std::string::npos;
    const auto geometry = geometry_of(size_bytes, ide ? "ide" : "lsilogic");
    text = with_value(text, "ddb.geometry.cylinders", quoted(std::to_string(geometry.cylinders)));
    text = with_value(text, "ddb.geometry.heads", quoted(std::to_string(geometry.heads)));
    return with_value(text, "ddb.geometry.sectors", quoted(std::to_string(geometry.sectors)));
}

/// Extents end where they always did, but for the last one.
Result<void> VmdkNode::check_new_size(std::uint64_t size_bytes) const {
    if (parts_.empty())
        return cannot("resizing without extents");
    if (size_bytes % kSector != 0)
        return base::fail(Errc::InvalidArgument,
                          fmt::format("the size {} is not a multiple of 512 bytes", size_bytes));
    const auto& last = parts_.back();
    if (size_bytes <= last.begin && parts_.size() > 1)
        return base::fail(Errc::Unsupported,
                          fmt::format("'{}' consists of several extents, and {} bytes would leave "
                                      "the last one empty",
                                      name_, size_bytes),
                          "Convert it.");
    const bool split = descriptor_.create_type.starts_with("twoGb");
    if (split && size_bytes - last.begin > kMaxSplitBytes)
        return base::fail(
            Errc::Unsupported,
            fmt::format("'{}' consists of extents of 2 GiB at most: it can grow to {} bytes", name_,
                        last.begin + kMaxSplitBytes),
            "Convert it to monolithicSparse.");
    if (last.sparse != nullptr)
        return last.sparse->check_new_size(size_bytes - last.begin);
    return {};
}

Task<void> VmdkNode::resize(std::uint64_t size_bytes) {
    DOPPEL_CO_TRY_VOID(check_new_size(size_bytes));
    DOPPEL_AWAIT_VOID(before_writing());
    const auto text = resized_descriptor(size_bytes);
    auto& last = parts_.back();
    AllOrNothing operation{broken_};
    // The extent is never smaller than the descriptor says.
    if (size_bytes < size_bytes_)
        DOPPEL_AWAIT_VOID(write_descriptor(text));
    DOPPEL_AWAIT_VOID(last.node->resize(size_bytes - last.begin));
    if (size_bytes >= size_bytes_) {
        DOPPEL_AWAIT_VOID(last.node->flush());
        DOPPEL_AWAIT_VOID(write_descriptor(text));
    }
    size_bytes_ = size_bytes;
    operation.done();
    co_return {};
}

Task<void> VmdkNode::make_empty() {
    DOPPEL_AWAIT_VOID(before_writing());
    for (auto& part : parts_)
        DOPPEL_AWAIT_VOID(part.node->make_empty());
    co_return {};
}

Task<void> VmdkNode::set_parent(std::string written, std::uint32_t cid) {
    auto text = with_value(descriptor_.text, "parentCID", cid_text(cid));
    text = written.empty() ? without(text, "parentFileNameHint")
                           : with_value(text, "parentFileNameHint", quoted(written));
    DOPPEL_AWAIT_VOID(write_descriptor(std::move(text)));
    parent_ = written;
    co_return {};
}

Task<void> VmdkNode::change_backing(std::string file, std::string format) {
    if (!file.empty() && format != "vmdk")
        co_return base::fail(Errc::InvalidArgument,
                             fmt::format("the parent of a VMDK image is a VMDK image, not {}",
                                         format.empty() ? "of unknown format" : format));
    DOPPEL_AWAIT_VOID(flush()); // what the new chain would show otherwise is here now
    if (file.empty()) {
        DOPPEL_AWAIT_VOID(set_parent({}, kNoParent));
        co_return {};
    }
    DOPPEL_AWAIT(cid, cid_of(context_, name_, file));
    DOPPEL_AWAIT_VOID(set_parent(file, cid));
    co_return {};
}

Task<void> VmdkNode::accept_backing() { return change_backing(parent_, "vmdk"); }

} // namespace doppel::block::vmdk
