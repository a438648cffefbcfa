"""Lists trees for fidelity.rs: one JSON object for each, by path.

    tree.py layers DIRECTORY...   the layers, top first, as overlayfs shows them together
    tree.py tree DIRECTORY        a plain directory

Runs as root of a user and mount namespace of its own, so that it may mount and read what is closed.
"""

import ctypes
import hashlib
import json
import os
import stat
import sys


def mount_layers(layers):
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source, target, kind, options):
        if libc.mount(source, target, kind, 1, options) != 0:  # MS_RDONLY
            raise OSError(ctypes.get_errno(), "mount", options)

    target = b"/mnt"
    # overlayfs wants two layers at least where nothing may be written.
    libc.mount(b"tmpfs", b"/media", b"tmpfs", 0, b"")
    options = b"userxattr,lowerdir=" + b":".join([os.fsencode(layer) for layer in layers] + [b"/media"])
    mount(b"overlay", target, b"overlay", options)
    return target


def describe(path, groups):
    status = os.lstat(path)
    mode = status.st_mode
    found = {"mode": oct(stat.S_IMODE(mode)), "modified": status.st_mtime_ns}
    if stat.S_ISREG(mode):
        with open(path, "rb") as file:
            found["sha256"] = hashlib.sha256(file.read()).hexdigest()
        found.update(type="file", size=status.st_size)
        groups.setdefault(status.st_ino, []).append(path)
    elif stat.S_ISLNK(mode):
        # A link's mode means nothing.
        found.update(type="symlink", target=repr(os.readlink(path)))
        del found["mode"]
        groups.setdefault(status.st_ino, []).append(path)
    else:
        found["type"] = {stat.S_IFDIR: "directory", stat.S_IFIFO: "fifo", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}[
            stat.S_IFMT(mode)
        ]
    xattrs = {}
    if not stat.S_ISLNK(mode):
        for name in os.listxattr(path):
            # The one keeps what hides what is below, the other umoci's owners.
            if name.startswith("user.") and not name.startswith(("user.overlay.", "user.rootlesscontainers")):
                xattrs[name] = os.getxattr(path, name).hex()
    found["xattrs"] = xattrs
    return found


def main():
    kind, *directories = sys.argv[1:]
    root = mount_layers(directories) if kind == "layers" else os.fsencode(directories[0])
    os.chdir(root)
    found, groups, left = {}, {}, [b"."]
    while left:
        path = left.pop()
        found[path] = describe(path, groups)
        if found[path]["type"] == "directory":
            left.extend(os.path.join(path, name) for name in os.listdir(path))
    for paths in groups.values():
        for path in paths:
            found[path]["same"] = repr(sorted(paths)) if len(paths) > 1 else None
    print(json.dumps({repr(path)[2:-1]: found[path] for path in sorted(found)}))


main()
