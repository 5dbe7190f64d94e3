"""Ray-traces scenes of `world` in torch, with exact ground truth for every picture.

On any device, many scenes at once. Every ray is tested against the bounding sphere of every solid
of its scene, and intersected with those it hits. The same tracer serves camera rays, shadow rays
and the extra rays of anti-aliasing.

In the private functions R is the number of rays, and N of the rays, points or solids of one step;
`scene` (R,) is the index of each ray's scene, sorted.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.diorama.world import (
    ADE20K,
    BOX,
    CHECKER,
    FACADE,
    FRUSTUM,
    MAX_CORNERS,
    SPHERE,
    STRIPES,
    Scene,
)

_FAR = 1.0e9
_EPSILON = 2.0e-3  # metres between a surface and the start of its shadow ray
_AA_CONTRAST = 0.08  # colour difference between neighbours above which a pixel is supersampled
TONE = 0.8  # exponent of the tone curve: it brightens shadows
_GROUND, _WALL, _SKY, _CEILING = -1, -2, -3, -4  # what a ray hits if not a solid


@dataclass(frozen=True)
class Truth:
    """A batch of pictures with their ground truth.

    image (B, H, W, 3) uint8 RGB;
    depth (B, H, W) float32 metres along the camera's axis, inf for the sky;
    normal (B, H, W, 3) float32 unit vectors in camera axes (x right, y up, z towards the camera),
    zero for the sky;
    classes (B, H, W) uint8 ADE20K indices;
    things (B, H, W) int16 index into `scene.things`, -1 where there is none;
    painted (B, H, W) bool, where the surface has the colour named in the thing's words;
    keypoints: per scene a (people, 18, 3) float array of x, y in pixels and visibility 0/1.
    """

    image: Tensor
    depth: Tensor
    normal: Tensor
    classes: Tensor
    things: Tensor
    painted: Tensor
    keypoints: list[np.ndarray]


class _Batch:
    """A batch's scenes as tensors: solids in one flat list, things padded to the largest count."""

    def __init__(self, scenes: Sequence[Scene], device: torch.device) -> None:
        self._device = device
        self._add_solids(scenes)
        self._add_things(scenes)
        self._add_surroundings(scenes)

    def _tensor(self, rows: object, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.as_tensor(np.asarray(rows), dtype=dtype, device=self._device)

    def _column(
        self, values: list[Any], width: int | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """(N,) or (N, width), also for N = 0."""
        shape = (len(values),) if width is None else (len(values), width)
        return self._tensor(np.asarray(values, float).reshape(shape), dtype)

    def _add_solids(self, scenes: Sequence[Scene]) -> None:
        """One row per solid, ordered by scene and thing."""
        owners = [(k, t) for s in scenes for k, t in enumerate(s.things) for _ in t.primitives]
        solids = [part for s in scenes for t in s.things for part in t.primitives]
        self.kinds = [p.kind for p in solids]
        self.thing = self._column([k for k, _ in owners], dtype=torch.long)
        self.centre = self._column([p.centre for p in solids], 3)
        self.to_local = self._column([p.to_local for p in solids], 9).view(-1, 3, 3)
        self.reach = self._column([p.reach for p in solids])
        self.taper = self._column([p.taper for p in solids])
        self.colour = self._column([p.colour for p in solids], 3)
        self.second = self._column([p.second_colour for p in solids], 3)
        self.pattern = self._column([p.pattern for p in solids], dtype=torch.long)
        self.gloss = self._column([p.gloss for p in solids])
        self.class_index = self._column([p.class_index for p in solids], dtype=torch.long)
        # Whether a solid has the colour named in its thing's words.
        self.named = self._column(
            [
                t.colour is not None and (not t.coloured or j in t.coloured)
                for s in scenes
                for t in s.things
                for j in range(len(t.primitives))
            ],
            dtype=torch.bool,
        )
        self.smooth = self._column([t.smooth for _, t in owners], dtype=torch.bool)
        outlines = np.zeros((len(solids), MAX_CORNERS, 2))
        for row, part in enumerate(solids):
            if part.outline is not None:
                # Repeating the last corner adds edges of length 0, which no ray hits.
                corner = np.minimum(np.arange(MAX_CORNERS), len(part.outline) - 1)
                outlines[row] = part.outline[corner]
        self.outline = self._tensor(outlines)
        # Scene b has the solids first[b] to first[b + 1].
        counts = [sum(len(t.primitives) for t in s.things) for s in scenes]
        self.first = [0, *np.cumsum(counts).tolist()]

    def _add_things(self, scenes: Sequence[Scene]) -> None:
        """Things (B, most): first solid, number of solids, and bounding sphere (…, 4)."""
        most = max(1, *(len(s.things) for s in scenes))
        start = np.zeros((len(scenes), most), int)
        count = np.zeros((len(scenes), most), int)
        sphere = np.zeros((len(scenes), most, 4))  # centre and radius
        sphere[:, :, 3] = -1.0  # where there is no thing
        row = 0
        for b, scene in enumerate(scenes):
            for k, thing in enumerate(scene.things):
                start[b, k], count[b, k] = row, len(thing.primitives)
                row += len(thing.primitives)
                low = np.min([p.centre - p.reach for p in thing.primitives], axis=0)
                high = np.max([p.centre + p.reach for p in thing.primitives], axis=0)
                middle = (low + high) / 2
                radius = max(
                    float(np.linalg.norm(p.centre - middle)) + p.reach for p in thing.primitives
                )
                sphere[b, k] = [*middle, radius]
        self.start = self._tensor(start, torch.long)
        self.count = self._tensor(count, torch.long)
        self.sphere = self._tensor(sphere)

    def _add_surroundings(self, scenes: Sequence[Scene]) -> None:
        """One row per scene: camera, light, ground, room and sky."""
        self.position = self._tensor([s.camera.position for s in scenes])
        self.rotation = self._tensor([s.camera.rotation for s in scenes])
        self.focal = self._tensor([s.camera.focal for s in scenes])
        self.light = self._tensor([s.light for s in scenes])
        self.indoors = self._tensor([s.room is not None for s in scenes], torch.bool)
        self.room = self._tensor([s.room or (_FAR, _FAR, _FAR) for s in scenes])
        self.wall = self._tensor([s.wall for s in scenes])
        self.ground = self._tensor([s.ground for s in scenes])
        self.ground_pattern = self._tensor([s.ground_pattern for s in scenes], torch.long)
        self.ground_class = self._tensor([s.ground_class for s in scenes], torch.long)
        self.zenith = self._tensor([s.sky.zenith for s in scenes])
        self.horizon = self._tensor([s.sky.horizon for s in scenes])
        self.sun = self._tensor([s.sky.sun for s in scenes])
        self.ambient = self._tensor([s.sky.ambient for s in scenes])
        self.clouds = self._tensor([s.sky.clouds for s in scenes])
        self.cartoon = self._tensor([s.cartoon for s in scenes], torch.bool)
        self.night = self._tensor([s.night for s in scenes], torch.bool)
        # Each scene's offset into the noise, so that clouds differ.
        self.phase = self._tensor(
            [
                [math.sin(12.9 * (s.seed % 9973)) * 40, math.cos(78.2 * (s.seed % 9973)) * 40]
                for s in scenes
            ]
        )


# The `_intersect_...` functions take rays (N, 3), origin o and direction d, in a solid's local axes
# and return the distance (N,), `_FAR` for a miss, and the local normal (N, 3), of any length.


def _intersect_sphere(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """The sphere of radius 1 around the origin."""
    a, b, c = (d * d).sum(1), (o * d).sum(1), (o * o).sum(1) - 1.0
    root = b * b - a * c
    t = (-b - root.clamp_min(0).sqrt()) / a
    return torch.where((root > 0) & (t > 0), t, _FAR), o + t[:, None] * d


def _intersect_box(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """The cube from -1 to 1."""
    safe = torch.where(d.abs() < 1e-9, 1e-9, d)
    one, two = (-1.0 - o) / safe, (1.0 - o) / safe
    near, axis = torch.minimum(one, two).max(1)
    far = torch.maximum(one, two).min(1).values
    normal = torch.zeros_like(o).scatter_(1, axis[:, None], -d.gather(1, axis[:, None]).sign())
    return torch.where((near < far) & (near > 0), near, _FAR), normal


def _intersect_frustum(o: Tensor, d: Tensor, taper: Tensor) -> tuple[Tensor, Tensor]:
    """x² + z² = (1 - (1 - taper) y)², closed by discs at y = 0 and y = 1."""
    k = 1.0 - taper
    radius = 1.0 - k * o[:, 1]
    a = d[:, 0] ** 2 + d[:, 2] ** 2 - (k * d[:, 1]) ** 2
    b = o[:, 0] * d[:, 0] + o[:, 2] * d[:, 2] + k * d[:, 1] * radius
    c = o[:, 0] ** 2 + o[:, 2] ** 2 - radius**2
    a = torch.where(a.abs() < 1e-9, 1e-9, a)
    root = b * b - a * c
    best = torch.full_like(b, _FAR)
    normal = torch.zeros_like(o)
    spread = root.clamp_min(0).sqrt()
    for t in ((-b - spread) / a, (-b + spread) / a):
        y = o[:, 1] + t * d[:, 1]
        good = (root > 0) & (t > 0) & (y >= 0) & (y <= 1) & (t < best)
        best = torch.where(good, t, best)
        p = o + t[:, None] * d
        side = torch.stack([p[:, 0], k * (1.0 - k * y), p[:, 2]], 1)
        normal = torch.where(good[:, None], side, normal)
    for level, disc in ((0.0, torch.ones_like(taper)), (1.0, taper)):
        t = (level - o[:, 1]) / torch.where(d[:, 1].abs() < 1e-9, 1e-9, d[:, 1])
        p = o + t[:, None] * d
        good = (p[:, 0] ** 2 + p[:, 2] ** 2 <= disc**2) & (t > 0) & (t < best)
        best = torch.where(good, t, best)
        normal = torch.where(
            good[:, None], normal.new_tensor([0.0, 2.0 * level - 1.0, 0.0]), normal
        )
    return best, normal


def _intersect_prism(o: Tensor, d: Tensor, outline: Tensor) -> tuple[Tensor, Tensor]:
    """An outline (corners, 2) in xz, extruded along y from 0 to 1."""
    here, there = outline, outline.roll(-1, 0)
    edge = there - here
    flat_o, flat_d = o[:, None, [0, 2]], d[:, None, [0, 2]]
    cross = flat_d[..., 0] * edge[..., 1] - flat_d[..., 1] * edge[..., 0]
    cross = torch.where(cross.abs() < 1e-9, 1e-9, cross)
    gap = here - flat_o
    t = (gap[..., 0] * edge[..., 1] - gap[..., 1] * edge[..., 0]) / cross
    along = (gap[..., 0] * flat_d[..., 1] - gap[..., 1] * flat_d[..., 0]) / cross
    y = o[:, 1:2] + t * d[:, 1:2]
    t = torch.where((t > 0) & (along >= 0) & (along < 1) & (y >= 0) & (y <= 1), t, _FAR)
    best, which = t.min(1)
    side = edge[which]
    normal = torch.stack([side[:, 1], torch.zeros_like(best), -side[:, 0]], 1)
    for level in (0.0, 1.0):
        t = (level - o[:, 1]) / torch.where(d[:, 1].abs() < 1e-9, 1e-9, d[:, 1])
        x, z = (o[:, 0] + t * d[:, 0])[:, None], (o[:, 2] + t * d[:, 2])[:, None]
        straddles = (here[..., 1] > z) != (there[..., 1] > z)
        height = torch.where(edge[..., 1].abs() < 1e-12, 1e-12, edge[..., 1])
        left = x < here[..., 0] + (z - here[..., 1]) / height * edge[..., 0]
        inside = (straddles & left).sum(1) % 2 == 1
        good = inside & (t > 0) & (t < best)
        best = torch.where(good, t, best)
        normal = torch.where(
            good[:, None], normal.new_tensor([0.0, 2.0 * level - 1.0, 0.0]), normal
        )
    facing = (normal * d).sum(1, keepdim=True) > 0
    return best, torch.where(facing, -normal, normal)


def _slices(scene: Tensor, scenes: int) -> list[slice]:
    """Each scene's slice of the rays; `scene` must be sorted."""
    bounds = torch.searchsorted(
        scene.contiguous(), torch.arange(scenes + 1, device=scene.device)
    ).tolist()
    return [slice(bounds[k], bounds[k + 1]) for k in range(scenes)]


def _trace(
    batch: _Batch, origin: Tensor, direction: Tensor, scene: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest solid along rays (R, 3): distance (R,), solid or -1 (R,), local normal (R, 3)."""
    nearest = torch.full_like(direction[:, 0], _FAR)
    solid = torch.full_like(scene, -1)
    normal = torch.zeros_like(direction)
    for b, rows in enumerate(_slices(scene, len(batch.first) - 1)):
        first, last = batch.first[b], batch.first[b + 1]
        if first == last or rows.start == rows.stop:
            continue
        o, d = origin[rows], direction[rows]
        centre, reach = batch.centre[first:last], batch.reach[first:last]
        along = d @ centre.T - (o * d).sum(1, keepdim=True)
        gap = (centre * centre).sum(1) - reach**2 + (o * o).sum(1, keepdim=True) - 2 * o @ centre.T
        near = (along**2 > gap * (d * d).sum(1, keepdim=True)) & ((along > 0) | (gap < 0))
        for k in range(last - first):
            meets = near[:, k].nonzero()[:, 0]
            if not len(meets):
                continue
            one = first + k
            to_local = batch.to_local[one].T
            t, n = _intersect(batch, one, (o[meets] - centre[k]) @ to_local, d[meets] @ to_local)
            meets += rows.start
            closer = (t < nearest[meets]).nonzero()[:, 0]
            won = meets[closer]
            nearest[won], normal[won], solid[won] = t[closer], n[closer], one
    return nearest, solid, normal


def _intersect(batch: _Batch, solid: int, o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Intersect local rays with one solid of any kind."""
    kind = batch.kinds[solid]
    if kind == SPHERE:
        return _intersect_sphere(o, d)
    if kind == BOX:
        return _intersect_box(o, d)
    if kind == FRUSTUM:
        return _intersect_frustum(o, d, batch.taper[solid])
    return _intersect_prism(o, d, batch.outline[solid])


def _noise(x: Tensor, y: Tensor) -> Tensor:
    """Smooth noise in -1..1 from a few sine waves: cheap, and the same on every device."""
    a = torch.sin(x * 1.7 + 2.3 * torch.sin(y * 0.9))
    b = torch.sin(y * 2.1 + 1.9 * torch.sin(x * 1.3))
    return (a + b + torch.sin((x + y) * 3.7 + torch.sin(x * 2.9 - y))) / 3.0


def _solid_colour(
    batch: _Batch, solid: Tensor, local: Tensor, night: Tensor
) -> tuple[Tensor, Tensor]:
    """Colour (N, 3) and class (N,) at local points of solids, including stripes and openings."""
    colour, second = batch.colour[solid], batch.second[solid]
    pattern, classes = batch.pattern[solid], batch.class_index[solid]
    striped = (pattern == STRIPES) & (torch.sin(local[:, 1] * 9.0 + 1.0) > 0.25)
    colour = torch.where(striped[:, None], second, colour)
    rows = (pattern == FACADE).nonzero()[:, 0]
    if len(rows):
        window, door = _openings(batch, solid[rows], local[rows])
        lit = colour.new_tensor([1.0, 0.85, 0.45])
        glass = torch.where(night[rows, None], lit, second[rows])
        painted = torch.where(window[:, None], glass, colour[rows])
        painted = torch.where(door[:, None], colour.new_tensor([0.30, 0.17, 0.09]), painted)
        colour = colour.index_copy(0, rows, painted)
        opening = torch.where(window, ADE20K["window"], classes[rows])
        opening = torch.where(door, ADE20K["door"], opening)
        classes = classes.index_copy(0, rows, opening)
    return colour, classes


def _openings(batch: _Batch, solid: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (N,) of windows and doors at local points (N, 3) on buildings' boxes."""
    half = 1.0 / batch.to_local[solid].norm(dim=2)  # the box's half sizes in metres
    p = local * half
    sideways = local[:, 0].abs() > 0.999
    upright = local[:, 1].abs() < 0.999
    across = torch.where(sideways, p[:, 2], p[:, 0])
    above = p[:, 1] + half[:, 1]
    column = (across / 0.85 + 0.5) - torch.floor(across / 0.85 + 0.5) - 0.5
    row = above / 1.15 - torch.floor(above / 1.15)
    margin = (torch.where(sideways, half[:, 2], half[:, 0]) - across.abs()) > 0.18
    pane = (column.abs() < 0.24) & (row > 0.38) & (row < 0.82)
    window = upright & margin & pane & (2 * half[:, 1] - above > 0.12)
    house = batch.class_index[solid] == ADE20K["house"]
    door = house & upright & ~sideways & (across.abs() < 0.24) & (above < 1.0)
    return window, door


def _backdrop(
    batch: _Batch, origin: Tensor, direction: Tensor, scene: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The ground or the room's inside: distance (R,), what was hit (R,), world normal (R, 3)."""
    room = batch.room[scene]
    indoors = batch.indoors[scene]
    safe = torch.where(direction.abs() < 1e-9, 1e-9, direction)
    down = -origin[:, 1] / safe[:, 1]
    nearest = torch.where(down > 0, down, _FAR)
    what = torch.where(down > 0, _GROUND, _SKY)
    up = direction.new_tensor([0.0, 1.0, 0.0])
    normal = torch.where((down > 0)[:, None], up, torch.zeros_like(direction))
    planes = (
        ((room[:, 0] * direction[:, 0].sign() - origin[:, 0]) / safe[:, 0], 0),
        ((room[:, 1] - origin[:, 1]) / safe[:, 1], 1),
        ((room[:, 2] - origin[:, 2]) / safe[:, 2], 2),
    )
    for t, axis in planes:
        closer = indoors & (t > 0) & (t < nearest)
        nearest = torch.where(closer, t, nearest)
        what = torch.where(closer, _CEILING if axis == 1 else _WALL, what)
        inward = torch.zeros_like(direction)
        inward[:, axis] = -direction[:, axis].sign()
        normal = torch.where(closer[:, None], inward, normal)
    return nearest, what, normal


def _ground_colour(batch: _Batch, point: Tensor, t: Tensor, scene: Tensor) -> Tensor:
    """The colour (N, 3) of the ground: tiles, planks, the dashed line of a road.

    Patterns fade with the distance `t` (N,), or they would alias.
    """
    x, z, phase = point[:, 0], point[:, 2], batch.phase[scene]
    far = (t / 9.0).clamp_max(1.0)[:, None]
    rough = _noise(x * 2.3 + phase[:, 0], z * 2.3 + phase[:, 1])[:, None]
    floor = batch.ground[scene] * (1.0 + 0.10 * rough * (1 - far))
    pattern = batch.ground_pattern[scene][:, None]
    tile = ((torch.floor(x / 0.8) + torch.floor(z / 0.8)) % 2)[:, None]
    plank = ((torch.floor(x / 0.45) * 0.6180339) % 1.0)[:, None]
    floor = torch.where(pattern == CHECKER, floor * (1 - 0.28 * tile * (1 - 0.5 * far)), floor)
    floor = torch.where(pattern == STRIPES, floor * (0.82 + 0.30 * plank), floor)
    lane = (batch.ground_class[scene] == ADE20K["road"]) & ((x - phase[:, 0] / 80).abs() < 0.07)
    return torch.where((lane & (torch.floor(z / 1.1) % 2 == 0))[:, None], 0.9, floor)


def _sky_colour(batch: _Batch, direction: Tensor, scene: Tensor) -> Tensor:
    """The colour (N, 3) of the sky, clouds included."""
    d = direction / direction.norm(dim=1, keepdim=True)
    height = d[:, 1].clamp_min(0.0)
    blend = (height * 2.2).clamp_max(1.0).sqrt()[:, None]
    colour = batch.horizon[scene] * (1 - blend) + batch.zenith[scene] * blend
    phase = batch.phase[scene]
    reach = 1.0 / (height + 0.12)
    cloud = _noise(d[:, 0] * reach * 1.4 + phase[:, 0], d[:, 2] * reach * 1.4 + phase[:, 1])
    amount = ((cloud + 0.15) * 2.0).clamp(0, 1) * batch.clouds[scene] * (height * 6).clamp_max(1)
    mixed: Tensor = colour * (1 - amount[:, None]) + 0.97 * amount[:, None]
    return mixed


@dataclass
class _Surface:
    """The first hit of rays (R, 3), before lighting.

    t (R,) distance, as a multiple of the ray's direction; what (R,) the solid, or `_GROUND`,
    `_WALL`, `_SKY` or `_CEILING`; point and normal (R, 3) in world axes; colour (R, 3) unlit; gloss
    (R,) 0..1; classes, things and painted (R,) as in `Truth`.
    """

    t: Tensor
    what: Tensor
    point: Tensor
    normal: Tensor
    colour: Tensor
    gloss: Tensor
    classes: Tensor
    things: Tensor
    painted: Tensor


def _shade(batch: _Batch, origin: Tensor, direction: Tensor, scene: Tensor) -> dict[str, Tensor]:
    """Colour and ground truth for rays (R, 3)."""
    surface = _surface(batch, origin, direction, scene)
    lit = surface.what != _SKY
    colour = _lit_colour(batch, surface, direction, scene)
    above = (~lit).nonzero()[:, 0]
    colour[above] = _sky_colour(batch, direction[above], scene[above])
    return {
        "colour": colour.clamp(0, 1),
        "t": torch.where(lit, surface.t, torch.inf),
        "normal": surface.normal,
        "classes": surface.classes,
        "things": surface.things,
        "painted": surface.painted,
    }


def _surface(batch: _Batch, origin: Tensor, direction: Tensor, scene: Tensor) -> _Surface:
    """The nearest solid, ground or room surface along rays (R, 3)."""
    t, solid, local_normal = _trace(batch, origin, direction, scene)
    back_t, back_what, back_normal = _backdrop(batch, origin, direction, scene)
    is_solid = (solid >= 0) & (t < back_t)
    t = torch.where(is_solid, t, back_t)
    what = torch.where(is_solid, solid, back_what)
    point = origin + t.clamp_max(1e4)[:, None] * direction
    surface = _Surface(
        t=t,
        what=what,
        point=point,
        normal=back_normal.clone(),
        colour=torch.zeros_like(direction),
        gloss=torch.zeros_like(t),
        classes=torch.full_like(what, ADE20K["sky"]),
        things=torch.full_like(what, -1),
        painted=torch.zeros_like(is_solid),
    )
    _paint_solids(batch, surface, is_solid.nonzero()[:, 0], solid, local_normal, scene)
    _paint_backdrop(batch, surface, scene)
    return surface


def _paint_solids(
    batch: _Batch,
    surface: _Surface,
    rows: Tensor,
    solid: Tensor,
    local_normal: Tensor,
    scene: Tensor,
) -> None:
    """Fill in the rays `rows` (N,) that hit a solid."""
    which = solid[rows]
    to_local = batch.to_local[which]
    local = torch.einsum("nij,nj->ni", to_local, surface.point[rows] - batch.centre[which])
    normal = torch.einsum("nij,ni->nj", to_local, local_normal[rows])
    smooth = batch.smooth[which].nonzero()[:, 0]
    if len(smooth):
        hits = rows[smooth]
        thing = batch.thing[which[smooth]]
        normal[smooth] = _blended_normal(batch, surface.point[hits], scene[hits], thing)
    surface.normal[rows] = normal / normal.norm(dim=1, keepdim=True).clamp_min(1e-9)
    night = batch.night[scene[rows]]
    surface.colour[rows], surface.classes[rows] = _solid_colour(batch, which, local, night)
    surface.gloss[rows] = batch.gloss[which]
    surface.things[rows] = batch.thing[which]
    surface.painted[rows] = batch.named[which] & (surface.classes[rows] == batch.class_index[which])


def _blended_normal(batch: _Batch, point: Tensor, scene: Tensor, thing: Tensor) -> Tensor:
    """Normals (N, 3) blended over all spheres of things (N,), weighted by nearness."""
    count = batch.count[scene, thing]
    # One row per pair of a point and a sphere of its thing.
    owner = torch.repeat_interleave(torch.arange(len(point), device=point.device), count)
    before = torch.repeat_interleave(count.cumsum(0) - count, count)
    offset = torch.arange(int(count.sum()), device=point.device) - before
    other = torch.repeat_interleave(batch.start[scene, thing], count) + offset
    q = torch.einsum("nij,nj->ni", batch.to_local[other], point[owner] - batch.centre[other])
    weight = torch.exp(-3.0 * ((q * q).sum(1) - 1.0)).clamp_max(1e3)
    gradient = torch.einsum("nij,ni->nj", batch.to_local[other], q) * weight[:, None]
    return torch.zeros_like(point).index_add_(0, owner, gradient)


def _paint_backdrop(batch: _Batch, surface: _Surface, scene: Tensor) -> None:
    """Fill in colour and class of ground, walls and ceiling; `_shade` adds the sky."""
    ground = (surface.what == _GROUND).nonzero()[:, 0]
    surface.colour[ground] = _ground_colour(
        batch, surface.point[ground], surface.t[ground], scene[ground]
    )
    surface.classes[ground] = batch.ground_class[scene[ground]]
    on_wall = surface.what == _WALL
    surface.colour = torch.where(on_wall[:, None], batch.wall[scene], surface.colour)
    surface.classes = torch.where(on_wall, ADE20K["wall"], surface.classes)
    on_ceiling = surface.what == _CEILING
    surface.colour = torch.where(on_ceiling[:, None], 0.93, surface.colour)
    surface.classes = torch.where(on_ceiling, ADE20K["ceiling"], surface.classes)


def _lit_colour(batch: _Batch, surface: _Surface, direction: Tensor, scene: Tensor) -> Tensor:
    """The surfaces' lit colours (R, 3) in 0..1; undefined for the sky."""
    indoors, light = batch.indoors[scene], batch.light[scene]
    towards = torch.where(indoors[:, None], light - surface.point, light)
    distance = towards.norm(dim=1)
    unit = towards / distance[:, None]
    facing = (surface.normal * unit).sum(1).clamp_min(0.0)
    visible = _visibility(batch, surface, towards, facing, scene)
    falloff = torch.where(indoors, 1.25 / (1.0 + 0.04 * distance**2), 1.0)
    direct = facing * visible * falloff
    sky_side = (0.72 + 0.28 * surface.normal[:, 1])[:, None]
    view = -direction / direction.norm(dim=1, keepdim=True)
    mirror = 2 * (surface.normal * unit).sum(1, keepdim=True) * surface.normal - unit
    shine = surface.gloss * visible * (mirror * view).sum(1).clamp_min(0) ** 28

    flat = batch.cartoon[scene]  # cartoons have two levels of light
    direct = torch.where(flat, (direct > 0.25).float() * 0.75, direct)
    sky_side = torch.where(flat[:, None], 0.95, sky_side)
    shine = torch.where(flat, (shine > 0.3).float() * 0.8, shine)

    occlusion = _ambient_occlusion(batch, surface, scene)[:, None]
    around = batch.ambient[scene] * sky_side * occlusion
    result = surface.colour * (around + batch.sun[scene] * direct[:, None])
    result = result + shine[:, None] * batch.sun[scene]
    haze = ((surface.t - 7.0) / 40.0).clamp(0, 0.75)[:, None] * (~indoors)[:, None]
    result = result * (1 - haze) + batch.horizon[scene] * haze
    return result.clamp(0, 1) ** TONE


def _visibility(
    batch: _Batch, surface: _Surface, towards: Tensor, facing: Tensor, scene: Tensor
) -> Tensor:
    """1 where the light reaches a surface that faces it, else 0 (R,)."""
    rows = ((surface.what != _SKY) & (facing > 0)).nonzero()[:, 0]
    start = surface.point[rows] + surface.normal[rows] * _EPSILON * (1 + surface.t[rows, None])
    blocked, _, _ = _trace(batch, start, towards[rows], scene[rows])
    # Distance is in units of `towards`: a lamp is at 1, the sun beyond everything.
    end = torch.where(batch.indoors[scene[rows]], 1.0, _FAR * 0.5)
    visible = torch.zeros_like(surface.t)
    visible[rows] = (blocked > end).float()
    return visible


def _ambient_occlusion(batch: _Batch, surface: _Surface, scene: Tensor) -> Tensor:
    """Factor of the ambient light (R,), 0.55..1: things darken the ground around them."""
    ground = (surface.what == _GROUND).nonzero()[:, 0]
    factor = torch.ones_like(surface.t)
    for b, part in enumerate(_slices(scene[ground], len(batch.sphere))):
        rows = ground[part]
        centre, radius = batch.sphere[b, :, :3], batch.sphere[b, :, 3].clamp_min(0)
        hidden = (radius / (torch.cdist(surface.point[rows], centre) + 0.2)).clamp_max(1.0) ** 3
        factor[rows] = 1.0 - 0.45 * hidden.amax(1)
    return factor


def _rays(batch: _Batch, scene: Tensor, x: Tensor, y: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Camera rays through picture positions x, y (R,) in pixels: origin and direction (R, 3).

    Directions have length 1 along the camera's axis.
    """
    u, v = (x + 0.5) * 2 / size - 1, 1 - (y + 0.5) * 2 / size
    focal = batch.focal[scene]
    local = torch.stack([u / focal, v / focal, torch.ones_like(u)], 1)
    return batch.position[scene], torch.einsum("ni,nij->nj", local, batch.rotation[scene])


def render(scenes: Sequence[Scene], size: int = 256, device: str | torch.device = "cpu") -> Truth:
    """Render scenes, `size` pixels square; the same scenes always give the same pictures."""
    device = torch.device(device)
    batch = _Batch(scenes, device)
    n = len(scenes)
    side = torch.arange(size, device=device)
    grid = torch.meshgrid(torch.arange(n, device=device), side, side, indexing="ij")
    scene, y, x = (index.reshape(-1) for index in grid)
    origin, direction = _rays(batch, scene, x.float(), y.float(), size)
    shaded = {
        name: value.view(n, size, size, *value.shape[1:])
        for name, value in _shade(batch, origin, direction, scene).items()
    }
    colour = _antialias(batch, shaded["colour"])
    if bool(batch.cartoon.any()):
        # Cartoons have dark outlines between things.
        line = _boundaries(shaded["things"], lambda a, b: a != b) & batch.cartoon[:, None, None]
        colour = torch.where(line[..., None], colour * 0.15, colour)

    camera_normal = torch.einsum("bij,bhwj->bhwi", batch.rotation, shaded["normal"])
    camera_normal = camera_normal * camera_normal.new_tensor([1.0, 1.0, -1.0])
    depth = shaded["t"]
    return Truth(
        image=(colour.clamp(0, 1) * 255 + 0.5).to(torch.uint8),
        depth=depth,
        normal=camera_normal,
        classes=shaded["classes"].to(torch.uint8),
        things=shaded["things"].to(torch.int16),
        painted=shaded["painted"],
        keypoints=[_keypoints(s, depth[b].cpu().numpy(), size) for b, s in enumerate(scenes)],
    )


def _boundaries(values: Tensor, differ: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A mask (B, H, W) of pixels that differ from a neighbour above, below, left or right."""
    size = values.shape[1]
    mask = torch.zeros(values.shape[:3], dtype=torch.bool, device=values.device)
    for axis in (1, 2):
        step = differ(values.narrow(axis, 0, size - 1), values.narrow(axis, 1, size - 1))
        mask.narrow(axis, 0, size - 1).logical_or_(step)
        mask.narrow(axis, 1, size - 1).logical_or_(step)
    return mask


def _antialias(batch: _Batch, colour: Tensor) -> Tensor:
    """Supersample the pixels (B, H, W, 3) that differ from a neighbour, with four rays each."""
    n, size = colour.shape[:2]
    rough = _boundaries(colour, lambda a, b: (a - b).abs().amax(3) > _AA_CONTRAST)
    scene, y, x = (index.repeat_interleave(4) for index in rough.nonzero(as_tuple=True))
    if not len(scene):
        return colour
    dx = torch.tensor([-0.25, 0.25, -0.25, 0.25], device=colour.device).repeat(len(x) // 4)
    dy = torch.tensor([-0.25, -0.25, 0.25, 0.25], device=colour.device).repeat(len(y) // 4)
    origin, direction = _rays(batch, scene, x + dx, y + dy, size)
    mean = _shade(batch, origin, direction, scene)["colour"].view(-1, 4, 3).mean(1)
    again = rough.view(-1).nonzero()[:, 0]
    return colour.reshape(-1, 3).index_copy(0, again, mean).view(n, size, size, 3)


def _keypoints(scene: Scene, depth: np.ndarray, size: int) -> np.ndarray:
    """The keypoints of a scene's people, (people, 18, 3): x, y in pixels and visibility 0/1.

    A point is visible if it is in the picture and not hidden according to its depth (H, W).
    """
    people = [thing.keypoints for thing in scene.things if thing.keypoints is not None]
    result = np.zeros((len(people), 18, 3), np.float32)
    for k, points in enumerate(people):
        local = (points - scene.camera.position) @ scene.camera.rotation.T
        x = (local[:, 0] / local[:, 2] * scene.camera.focal + 1) * size / 2 - 0.5
        y = (1 - local[:, 1] / local[:, 2] * scene.camera.focal) * size / 2 - 0.5
        inside = (x >= 0) & (x <= size - 1) & (y >= 0) & (y <= size - 1)
        row, column = (np.clip(v.round(), 0, size - 1).astype(int) for v in (y, x))
        surface = depth[row, column]
        # A joint is inside its limb: up to a body's depth behind the surface it is visible.
        result[k] = np.stack([x, y, inside & (local[:, 2] - surface < 0.25)], 1)
    return result
