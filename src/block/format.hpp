// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What a format is to the rest: a row of functions and tables. block/image/formats.cpp lists the
/// rows; everything else (probing, opening, the tool, the test matrix) goes through them.
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "block/file/file_node.hpp"
#include "block/image_node.hpp"
#include "block/io/io_context.hpp"
#include "block/secret.hpp"

namespace doppel::block {

/// How deep a chain of backing files may be: a loop ends here.
constexpr unsigned kMaxChainDepth = 64;

struct ImageOptions {
    std::string format; // empty: guess from the content
    Access access = Access::ReadOnly;
    CacheMode cache = CacheMode::WriteBack;
    Sharing sharing = Sharing::Locked;
    /// Of the images behind this one, where it is not as this one's.
    std::optional<CacheMode> backing_cache;
    std::optional<Sharing> backing_sharing;
    bool backing = true;       // follow the backing chain; else what lies in it reads as zeroes
    bool repair_later = false; // open even an image that must be repaired first: for check
    /// Whether `format` empty may yield a format other than raw that names further files. A guest
    /// that owns a raw disk could have written such a header, and make us read the host's files.
    bool trust_probe = true;
    unsigned depth = 0; // of this image in its chain
    /// Behind the names of the image's parts: those of a new one that is not published yet.
    std::string part_suffix;
    std::string disk; // of an archive that holds several; empty: the only one
    /// How this image is opened, names known to the format ("encrypt.key-secret"); with "backing."
    /// in front, how the one behind it is.
    OptionValues driver;
    const SecretSource* secrets = nullptr; // outlives the node
    /// An encrypted image must be unlocked; else it may be looked at without its data.
    bool unlock = true;
};

/// How a format opens the other files that its image names.
class ImageOpener {
public:
    virtual ~ImageOpener() = default;
    /// `written`: the name as it stands in the image; relative ones start at `image`'s folder.
    /// `format` empty: guessed. Errors name both files.
    virtual Task<std::unique_ptr<Node>> open_backing(std::string written, std::string format,
                                                     std::string image, ImageOptions like) = 0;
    /// An extent or data file beside the image. Only names inside the image's folder are followed.
    virtual Result<std::unique_ptr<Node>>
    open_part(const std::string& written, const std::string& image, const ImageOptions& like) = 0;
    /// A new, empty part beside the image that is being created.
    virtual Result<std::unique_ptr<Node>> create_part(const std::string& name) {
        return base::fail(Errc::Unsupported,
                          "this image would be several files, here there can be one: " + name);
    }
};

struct OpenRequest {
    IoContext* context = nullptr;
    std::unique_ptr<Node> file; // the protocol node
    ImageOptions options;
    ImageOpener* opener = nullptr; // valid during the call
};

enum class OptionKind : std::uint8_t { Size, Number, Switch, Text };

/// A creation option (-o name=value).
struct OptionSpec {
    std::string_view name;
    OptionKind kind = OptionKind::Text;
    std::string_view standard; // its value when not given; empty: none
    std::string_view help;
};

struct CreateRequest {
    IoContext* context = nullptr;
    std::unique_ptr<Node> file; // empty
    std::uint64_t size_bytes = 0;
    OptionValues options;
    ImageOpener* opener = nullptr;
    std::string published_name = {}; // of the file, where it has another until it is complete
    const SecretSource* secrets = nullptr;
};

struct DiskUse {
    std::uint64_t size_bytes = 0; // of the disk
    std::uint64_t data_bytes = 0; // in whole clusters
    /// Those that convert could bring along; none where the source's format has none.
    std::optional<std::vector<BitmapInfo>> bitmaps = {};
};
struct SpaceNeed {
    std::uint64_t required = 0;                // now
    std::uint64_t fully_allocated = 0;         // once everything is written
    std::optional<std::uint64_t> bitmaps = {}; // more, for those of DiskUse; none: not kept
};

struct Format {
    std::string_view name;
    std::string_view description;
    /// How surely the first bytes are this format's: 0 no, 100 its magic number.
    int (*probe)(std::span<const std::byte> head, std::uint64_t file_bytes) = nullptr;
    Task<std::unique_ptr<ImageNode>> (*open)(OpenRequest request) = nullptr;
    /// Null: the format is read only.
    Task<void> (*create)(CreateRequest request) = nullptr;
    std::span<const OptionSpec> options;
    /// Null: cannot be told.
    Result<SpaceNeed> (*measure)(const DiskUse& use, const OptionValues& options) = nullptr;
    /// Of ImageOptions::driver.
    std::span<const OptionSpec> open_options = {};
    /// The cluster of DiskUse::data_bytes, for a disk of this size. Null: a byte.
    Result<std::uint64_t> (*measure_unit)(std::uint64_t size_bytes,
                                          const OptionValues& options) = nullptr;
};

} // namespace doppel::block
