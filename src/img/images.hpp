// SPDX-License-Identifier: Apache-2.0
#pragma once
/// What the commands do with images alike: open them as the flags say, make new ones under a
/// temporary name. Owner thread only.
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "block/image/open_image.hpp"
#include "img/command.hpp"
#include "img/image_name.hpp"

namespace doppel::img {

struct OpenFlags {
    std::string format;
    block::Access access = block::Access::ReadOnly;
    bool shared = false; // -U
    std::string cache = "writeback";
    bool backing = true;
    std::string backing_cache;   // of the images behind; empty: the same
    bool backing_shared = false; // they are not locked
    bool repair_later = false;
    std::string disk;        // of a package
    std::string part_suffix; // see block::ImageOptions
    bool unlock = true;      // an encrypted image needs its passphrase
};
/// The flags that every command shares: -f, -U, --image-opts, -t or -T.
OpenFlags open_flags(const Arguments& arguments, block::Access access);
Result<block::OpenedImage> open_named(Session& session, const std::string& text,
                                      const OpenFlags& flags);
Result<block::OpenedImage> open_named(Session& session, const ImageName& name,
                                      const OpenFlags& flags);
/// Sees to it that an image which is open for writing is closed, be it that the command ends with
/// an error: bitmaps are marked as in use while it is open, and would be of no use any more.
class Closing {
public:
    /// Both outlive it.
    Closing(Session& session, block::Node& node) : session_{session}, node_{&node} {}
    Closing(const Closing&) = delete;
    Closing& operator=(const Closing&) = delete;
    ~Closing(); // the command has another error to tell
    /// Now, with the error if that fails.
    Result<void> close();

private:
    Session& session_;
    block::Node* node_; // nullptr: closed
};

/// A file that appears under its name when it is complete: until then it has another, and it goes
/// away when it does not become complete, be it by Ctrl-C. An image of several files brings its
/// parts along.
class NewFile {
public:
    /// Makes none yet: create_image() does. Error: somebody uses the one that is to be replaced.
    static Result<NewFile> prepare(Session& session, const std::string& path);
    NewFile(NewFile&& other) noexcept;
    NewFile& operator=(NewFile&&) = delete;
    NewFile(const NewFile&) = delete;
    ~NewFile();
    /// Where to write: a name beside the final one; the device or the export itself if it is one.
    const std::string& path() const noexcept { return temporary_; }
    bool is_device() const noexcept { return temporary_ == final_; }
    const std::string& final_name() const noexcept { return final_; }
    /// What its parts have behind their names until then.
    std::string part_suffix() const { return temporary_.substr(final_.size()); }
    /// A new, empty part in the same folder. Error: somebody uses the one that is to be replaced.
    Result<std::unique_ptr<block::Node>> create_part(Session& session, const std::string& name,
                                                     const block::FileHints& hints);
    /// Where the part with this final name is now.
    std::string part_path(const std::string& path) const;
    /// The file is complete. Parts get their names before the file that names them, and an old one
    /// that names them is gone first.
    Result<void> publish();

private:
    NewFile(std::string temporary, std::string final_name);
    std::string temporary_;
    std::string final_;
    std::vector<std::string> parts_; // final names
};

/// What -o may say of a new image: the format's options and those that any new file has.
std::vector<block::OptionSpec> creation_options(const block::Format& format);
/// Error: -o names another one.
Result<void> check_options(const block::Format& format, const block::OptionValues& options);
/// Those that any new file has.
std::span<const block::OptionSpec> file_options();

/// Creates an image in the file that was prepared for it. Error also: the place cannot be written.
Result<void> create_image(Session& session, const block::Format& format, NewFile& file,
                          std::uint64_t size_bytes, block::OptionValues options);

/// -r: bytes per second; 0 when not given.
Result<std::uint64_t> parse_rate(const Arguments& arguments);

/// -o help, -o ?: the options that there are, instead of doing anything.
bool wants_list(const block::OptionValues& options);
int list_options(std::span<const block::OptionSpec> options);

/// The node shows an internal snapshot from now on. `text` is its name or ID, or says which of both
/// it means: "snapshot.id=1,snapshot.name=clean".
Result<void> view_snapshot(Session& session, block::ImageNode& node, const std::string& text);

/// Prints progress on the terminal: percent, rate, time left; qemu-img's line where -p was given
/// and stderr is no terminal.
class Progress {
public:
    enum class When : std::uint8_t { Never, Terminal, Always };
    Progress(When when, std::uint64_t total_bytes);
    ~Progress();
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;
    void add(std::uint64_t bytes);

private:
    void draw();
    When when_;
    bool terminal_;
    std::uint64_t total_;
    std::uint64_t done_ = 0;
    double start_s_;
    double drawn_s_ = 0;
};
/// -p, -q and a terminal decide.
Progress::When progress_of(const Arguments& arguments);

/// "1.5 GiB".
std::string human_size(std::uint64_t bytes);
/// The backing file of `image` as a path from here.
std::string backing_path(const std::string& written, const std::string& image);

} // namespace doppel::img
