"""Videos → tracks: the first and the last patch of something that moves (Wang and Gupta 2015; protocols 7.4).

Paper: SURF points of improved dense trajectories say where something moves, KCF follows it for 30
frames. We: dense optical flow less the camera's says where, OpenCV's KCF follows.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pretrain.files import Missing
from pretrain.images import SIDE
from pretrain.listing import Listing, printable, real_folder, walk
from pretrain.pixels import LARGEST

SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
LENGTH = 30  # frames from the first patch to the last
STRIDE = 6  # frames between the starts of tracks
SHORTER = 448  # frames with a longer shorter side are reduced to it; paper: 448×600
SMALLEST = 32  # pixels of the shorter side: of less there is no patch to speak of, nor flow
PATCH = 227 / 448  # of the shorter side
AHEAD = 3  # frames over which the flow is measured
MOVING = 1.0  # pixels of flow, over AHEAD frames, that the camera's does not explain
LEAST, MOST = 0.1, 0.75  # of a patch that must move; of a frame that may (paper: 75% of the points)
PER_START = 2  # tracks that start in one frame at most

Frame = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # x, y, width, height


def list_videos(folder: Path) -> Listing:
    """The videos in `folder`, sorted, and what was not looked at. Raises Missing when there is none."""
    real_folder(folder, remedy="give --videos another folder")
    listing = walk(folder, SUFFIXES)
    if not listing.files:
        known, beside = ", ".join(sorted(SUFFIXES)), f"; not looked at: {listing.report()}" if listing.unread else ""
        raise Missing(
            f"{printable(folder)}: no videos here ({known}{beside}): give --videos a folder of videos, "
            "or --images for motion made from stills"
        )
    return listing


def tracks(path: Path) -> list[bytes] | str:
    """The first and last patch of every track of a video, SIDE×SIDE×3 RGB bytes each; or why there are none."""
    cv2.setNumThreads(1)  # one process a core already, and sums in one order
    found: list[bytes] = []
    clip: deque[Frame] = deque(maxlen=LENGTH + 1)
    count = 0
    try:
        if not path.is_file():
            return "not a file" if path.exists() else "not there"
        promised, width, height = promise(path)
        if width * height > LARGEST:
            return f"too large ({width}×{height}): {LARGEST:,} pixels are the most"
        for frame in frames(path):
            height, width = frame.shape[:2]
            if min(height, width) < SMALLEST:
                return f"too small ({width}×{height}): {SMALLEST} pixels are the least"
            clip.append(frame)
            count += 1
            if len(clip) == clip.maxlen and (count - len(clip)) % STRIDE == 0:
                for first in moving(clip[0], clip[AHEAD]):
                    if last := follow(list(clip), first):
                        found += [patch(clip[0], first), patch(clip[-1], last)]
    except (cv2.error, OSError, MemoryError):
        return "cannot be decoded"
    if not count:
        return "cannot be decoded"
    if count < promised - max(1, promised // 100):
        return f"damaged or cut ({count} of the {promised} frames that it promises can be read)"
    if count <= LENGTH:
        return f"shorter than the {LENGTH + 1} frames of a track ({count})"
    return found or "nothing in it moves by itself"


@contextmanager
def opened(path: Path) -> Iterator[cv2.VideoCapture]:
    """The film, by a name that OpenCV understands: it takes "http:x.avi" for an address and dies of other bytes.

    Raises OSError.
    """
    with path.open("rb") as file:
        video = cv2.VideoCapture(f"/proc/self/fd/{file.fileno()}", cv2.CAP_FFMPEG)
        try:
            yield video
        finally:
            video.release()


def promise(path: Path) -> tuple[int, int, int]:
    """How many frames a film says it has (0: it does not say), their width and height. Raises OSError.

    OpenCV ends a damaged film where it ends a whole one, and leaves out what it cannot decode.
    """
    with opened(path) as video:
        names = (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        frames, width, height = (max(0, int(video.get(name))) for name in names)
        return frames, width, height


def frames(path: Path) -> Iterator[Frame]:
    """H×W×3 uint8, BGR, reduced to a shorter side of SHORTER. Raises OSError."""
    with opened(path) as video:
        while True:
            there, frame = video.read()
            if not there:
                return
            scale = SHORTER / min(frame.shape[:2])
            yield cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else frame


def moving(first: Frame, later: Frame) -> list[Box]:
    """The boxes of `first` that hold most of what moves otherwise than the camera until `later`."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in (first, later)]
    flow = np.zeros((*grey[0].shape, 2), np.float32)
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(grey[0], grey[1], flow)
    mask = np.linalg.norm(flow - camera_flow(flow), axis=2) > MOVING
    if mask.mean() > MOST:
        return []
    side = round(PATCH * min(mask.shape))
    found: list[Box] = []
    for _ in range(PER_START):
        share = cv2.boxFilter(mask.astype(np.float32), -1, (side, side), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
        inside = share[: mask.shape[0] - side + 1, : mask.shape[1] - side + 1]
        y, x = (int(n) for n in np.unravel_index(inside.argmax(), inside.shape))
        if inside[y, x] < LEAST:
            break
        found.append((x, y, side, side))
        mask[y : y + side, x : x + side] = False
    return found


def camera_flow(flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """H×W×2 → the same shape: the flow of the similarity that most places agree on."""
    height, width = flow.shape[:2]
    rows, columns = np.mgrid[4:height:8, 4:width:8].reshape(2, -1)
    places = np.stack([columns, rows], 1).astype(np.float32)
    cv2.setRNGSeed(0)
    matrix, _ = cv2.estimateAffinePartial2D(places, places + flow[rows, columns], ransacReprojThreshold=1.0)
    if matrix is None:
        return np.zeros_like(flow)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    moved = np.stack([x, y, np.ones_like(x)], 2) @ matrix.T.astype(np.float32)
    return np.asarray(moved - np.stack([x, y], 2), np.float32)


def follow(clip: list[Frame], first: Box) -> Box | None:
    """Where KCF finds `first` in the last frame; None when it is lost on the way, or leaves the frame."""
    tracker = cv2.TrackerKCF.create()
    tracker.init(clip[0], first)
    box: Box = first
    for frame in clip[1:]:
        there, box = tracker.update(frame)
        if not there:
            return None
    x, y, width, height = (int(n) for n in box)
    inside = 0 <= x <= clip[-1].shape[1] - width and 0 <= y <= clip[-1].shape[0] - height
    whole = (width, height) == first[2:]  # KCF cuts off what lies beyond the frame
    return (x, y, width, height) if inside and whole else None


def patch(frame: Frame, box: Box) -> bytes:
    """SIDE×SIDE×3 bytes, RGB."""
    x, y, width, height = box
    cut = cv2.resize(frame[y : y + height, x : x + width], (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(cut[:, :, ::-1]).tobytes()
