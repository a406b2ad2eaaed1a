// SPDX-License-Identifier: Apache-2.0
#pragma once
/// A volume of LUKS version 1 in a file, as cryptsetup and QEMU have it: the header with its key
/// slots, behind it the disk, encrypted. Owner thread only.
#include "block/crypto/cipher_node.hpp"
#include "block/crypto/luks_options.hpp"
#include "block/format.hpp"

namespace doppel::block::luks {

class LuksNode final : public ImageNode {
public:
    static Task<std::unique_ptr<LuksNode>> open(OpenRequest request);

    std::string driver() const override { return "luks"; }
    std::string name() const override { return file_->name(); }
    std::uint64_t size() const override { return size_; }
    Limits limits() const override { return {crypto::kSectorBytes, 1, 0}; }
    bool read_only() const override { return options_.access == Access::ReadOnly; }
    bool fixed_size() const override { return file_->fixed_size(); }
    bool starts_as_zeroes() const override { return false; }
    bool plain_data() const override { return false; }

    Task<void> read(std::uint64_t offset, IoBuffer into) override;
    Task<void> write(std::uint64_t offset, IoBuffer from, Durability durability) override;
    Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Unmap unmap,
                            Durability durability) override;
    /// Nothing is given back: a hole would show what is used and read as noise.
    Task<void> discard(std::uint64_t, std::uint64_t) override { return ready<void>({}); }
    Task<void> flush() override { return file_->flush(); }
    Task<Extent> status(std::uint64_t offset, std::uint64_t length) override;
    /// What is added is written with zeroes.
    Task<void> resize(std::uint64_t size_bytes) override;
    Task<void> close() override { return file_->close(); }
    Node* file() override { return file_.get(); }
    std::optional<std::uint64_t> allocated_bytes() const override {
        return file_->allocated_bytes();
    }
    ImageInfo info() const override;
    Task<void> amend(OptionValues options) override;

private:
    explicit LuksNode(OpenRequest& request)
        : context_{*request.context}, options_{request.options}, file_{std::move(request.file)} {}
    Task<void> unlock();
    Result<void> require_unlocked() const;

    IoContext& context_;
    ImageOptions options_;
    std::unique_ptr<Node> file_;
    std::unique_ptr<crypto::LuksVolume> volume_;
    std::unique_ptr<crypto::CipherNode> data_; // once it is unlocked
    std::uint64_t size_ = 0;
};

/// The row of the format table.
const Format& format();

} // namespace doppel::block::luks
