"""Which file system holds a folder, and whether it is one of a network."""

from __future__ import annotations

from typing import Final

NETWORK_FILE_SYSTEMS: Final = frozenset(
    (
        "9p",
        "afs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "gfs2",
        "glusterfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "prl_fs",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
        "vmhgfs",
    )
)

MOUNTS: Final = "/proc/self/mounts"


def network_mount(folder: str, mounts: str = MOUNTS) -> str | None:
    """Return the type of the network file system that holds `folder`; None if none is known.

    `folder` is a real path. `mounts` is the file in which this machine lists what is mounted.
    """
    kind = _file_system(folder, mounts)
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def _file_system(folder: str, mounts: str) -> str | None:
    """Return the type of the file system that holds `folder`, if this machine tells."""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.split(" ") for line in file]
    except OSError:
        return None
    kind, longest = None, -1
    for fields in lines:
        point = fields[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        inside = folder == point or folder.startswith(point.rstrip("/") + "/")
        # The last mount on a point hides those before it.
        if inside and len(point) >= longest:
            kind, longest = fields[2], len(point)
    return kind
