"""Ray-traces scenes of `training.world` on tensors: any device, many scenes at once, with the exact truth beside each picture.

Every ray is first tested against the bounding sphere of every solid of its scene; only the pairs that survive are
intersected. The same tracer serves camera rays, shadow rays and the extra rays that smooth the edges.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.world import ADE20K, BOX, CHECKER, FACADE, FRUSTUM, MAX_CORNERS, PRISM, SPHERE, STRIPES, Scene

_FAR = 1.0e9
_EPSILON = 2.0e-3  # metres by which a shadow ray leaves its surface
_OUTLINE_CONTRAST = 0.08  # colour step between neighbours above which a pixel is traced again, four times
_TONE = 0.8  # exponent that opens the shadows, as a camera's curve does
_GROUND, _WALL = -1, -2  # what a ray hit when it hit no solid; -3 is the sky
_SKY = -3


@dataclass(frozen=True)
class Truth:
    """What the renderer knows about a batch of pictures.

    image (B, H, W, 3) uint8 RGB; depth (B, H, W) float32 metres along the camera's axis, inf for the sky;
    normal (B, H, W, 3) float32 unit vectors in camera axes (x right, y up, z towards the camera), zero for the sky;
    classes (B, H, W) uint8 ADE20K indices; things (B, H, W) int16 index into `scene.things`, -1 where none;
    painted (B, H, W) bool: where the surface has the colour that the thing's words name;
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
    """The scenes of a batch as tensors: solids in one flat list, things as padded bounding spheres."""

    def __init__(self, scenes: Sequence[Scene], device: torch.device) -> None:
        solids = [(b, k, part) for b, s in enumerate(scenes) for k, t in enumerate(s.things) for part in t.primitives]
        most = max(max(len(s.things) for s in scenes), 1)

        def tensor(rows: object, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.as_tensor(np.asarray(rows), dtype=dtype, device=device)

        def column(values: list[object], width: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
            shape = (len(values),) if width is None else (len(values), width)
            return tensor(np.asarray(values, float).reshape(shape), dtype)

        self.kinds = [p.kind for _, _, p in solids]
        self.thing = column([k for _, k, _ in solids], dtype=torch.long)
        self.centre = column([p.centre for _, _, p in solids], 3)
        self.to_local = column([p.to_local for _, _, p in solids], 9).view(-1, 3, 3)
        self.reach = column([p.reach for _, _, p in solids])
        self.taper = column([p.taper for _, _, p in solids])
        self.colour = column([p.colour for _, _, p in solids], 3)
        self.second = column([p.second_colour for _, _, p in solids], 3)
        self.pattern = column([p.pattern for _, _, p in solids], dtype=torch.long)
        self.gloss = column([p.gloss for _, _, p in solids])
        self.class_index = column([p.class_index for _, _, p in solids], dtype=torch.long)
        self.named = column(
            [t.colour is not None and (not t.coloured or j in t.coloured)
             for s in scenes for t in s.things for j in range(len(t.primitives))], dtype=torch.bool,
        )  # fmt: skip
        self.smooth = column([scenes[b].things[k].smooth for b, k, _ in solids], dtype=torch.bool)
        outlines = np.zeros((len(solids), MAX_CORNERS, 2))
        for row, (_, _, part) in enumerate(solids):
            if part.outline is not None:  # repeating the last corner adds edges of no length, which no ray meets
                outlines[row] = part.outline[np.minimum(np.arange(MAX_CORNERS), len(part.outline) - 1)]
        self.outline = tensor(outlines)

        start = np.zeros((len(scenes), most), int)
        count = np.zeros((len(scenes), most), int)
        sphere = np.zeros((len(scenes), most, 4))
        sphere[:, :, 3] = -1.0
        row = 0
        for b, scene in enumerate(scenes):
            for k, thing in enumerate(scene.things):
                start[b, k], count[b, k] = row, len(thing.primitives)
                row += len(thing.primitives)
                low = np.min([p.centre - p.reach for p in thing.primitives], axis=0)
                high = np.max([p.centre + p.reach for p in thing.primitives], axis=0)
                middle = (low + high) / 2
                radius = max(float(np.linalg.norm(p.centre - middle)) + p.reach for p in thing.primitives)
                sphere[b, k] = [*middle, radius]
        self.first = [0, *np.cumsum([sum(len(t.primitives) for t in s.things) for s in scenes]).tolist()]
        self.start, self.count = tensor(start, torch.long), tensor(count, torch.long)
        self.sphere = tensor(sphere)

        self.position = tensor([s.camera.position for s in scenes])
        self.rotation = tensor([s.camera.rotation for s in scenes])
        self.focal = tensor([s.camera.focal for s in scenes])
        self.light = tensor([s.light for s in scenes])
        self.indoors = tensor([s.room is not None for s in scenes], torch.bool)
        self.room = tensor([s.room or (_FAR, _FAR, _FAR) for s in scenes])
        self.wall = tensor([s.wall for s in scenes])
        self.ground = tensor([s.ground for s in scenes])
        self.ground_pattern = tensor([s.ground_pattern for s in scenes], torch.long)
        self.ground_class = tensor([s.ground_class for s in scenes], torch.long)
        self.zenith = tensor([s.sky.zenith for s in scenes])
        self.horizon = tensor([s.sky.horizon for s in scenes])
        self.sun = tensor([s.sky.sun for s in scenes])
        self.ambient = tensor([s.sky.ambient for s in scenes])
        self.clouds = tensor([s.sky.clouds for s in scenes])
        self.cartoon = tensor([s.cartoon for s in scenes], torch.bool)
        self.night = tensor([s.night for s in scenes], torch.bool)
        self.phase = tensor([[math.sin(12.9 * (s.seed % 9973)) * 40, math.cos(78.2 * (s.seed % 9973)) * 40] for s in scenes])


def _meet_sphere(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    a, b, c = (d * d).sum(1), (o * d).sum(1), (o * o).sum(1) - 1.0
    root = b * b - a * c
    t = (-b - root.clamp_min(0).sqrt()) / a
    return torch.where((root > 0) & (t > 0), t, _FAR), o + t[:, None] * d


def _meet_box(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    safe = torch.where(d.abs() < 1e-9, 1e-9, d)
    one, two = (-1.0 - o) / safe, (1.0 - o) / safe
    near, axis = torch.minimum(one, two).max(1)
    far = torch.maximum(one, two).min(1).values
    normal = torch.zeros_like(o).scatter_(1, axis[:, None], -d.gather(1, axis[:, None]).sign())
    return torch.where((near < far) & (near > 0), near, _FAR), normal


def _meet_frustum(o: Tensor, d: Tensor, taper: Tensor) -> tuple[Tensor, Tensor]:
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
        normal = torch.where(good[:, None], normal.new_tensor([0.0, 2.0 * level - 1.0, 0.0]), normal)
    return best, normal


def _meet_prism(o: Tensor, d: Tensor, outline: Tensor) -> tuple[Tensor, Tensor]:
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
        normal = torch.where(good[:, None], normal.new_tensor([0.0, 2.0 * level - 1.0, 0.0]), normal)
    facing = (normal * d).sum(1, keepdim=True) > 0
    return best, torch.where(facing, -normal, normal)


def _slices(scene: Tensor, scenes: int) -> list[slice]:
    """Where each scene's rays stand; `scene` must be sorted."""
    bounds = torch.searchsorted(scene.contiguous(), torch.arange(scenes + 1, device=scene.device)).tolist()
    return [slice(bounds[k], bounds[k + 1]) for k in range(scenes)]


def _trace(batch: _Batch, origin: Tensor, direction: Tensor, scene: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest solid along rays (R, 3) of scenes (R,), sorted: distance (R,), solid or -1 (R,), local normal (R, 3)."""
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
            t, n = _meet(batch, one, (o[meets] - centre[k]) @ batch.to_local[one].T, d[meets] @ batch.to_local[one].T)
            meets += rows.start
            closer = (t < nearest[meets]).nonzero()[:, 0]
            won = meets[closer]
            nearest[won], normal[won], solid[won] = t[closer], n[closer], one
    return nearest, solid, normal


def _meet(batch: _Batch, solid: int, o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Where local rays meet one solid: distance (N,), `_FAR` where they miss, and local normal (N, 3)."""
    kind = batch.kinds[solid]
    if kind == SPHERE:
        return _meet_sphere(o, d)
    if kind == BOX:
        return _meet_box(o, d)
    if kind == FRUSTUM:
        return _meet_frustum(o, d, batch.taper[solid])
    return _meet_prism(o, d, batch.outline[solid])


def _noise(x: Tensor, y: Tensor) -> Tensor:
    """Smooth noise in -1..1 from a few incommensurable waves: cheap, and the same on every device."""
    a = torch.sin(x * 1.7 + 2.3 * torch.sin(y * 0.9)) + torch.sin(y * 2.1 + 1.9 * torch.sin(x * 1.3))
    return (a + torch.sin((x + y) * 3.7 + torch.sin(x * 2.9 - y))) / 3.0


def _solid_colour(batch: _Batch, solid: Tensor, local: Tensor, night: Tensor) -> tuple[Tensor, Tensor]:
    """Colour (N, 3) and class (N,) at local points of solids, with stripes, windows and doors."""
    colour, second = batch.colour[solid], batch.second[solid]
    pattern, classes = batch.pattern[solid], batch.class_index[solid]
    striped = (pattern == STRIPES) & (torch.sin(local[:, 1] * 9.0 + 1.0) > 0.25)
    colour = torch.where(striped[:, None], second, colour)
    rows = (pattern == FACADE).nonzero()[:, 0]
    if len(rows):
        half = 1.0 / batch.to_local[solid[rows]].norm(dim=2)  # the box's half sizes in metres
        p = local[rows] * half
        sideways = local[rows, 0].abs() > 0.999
        upright = local[rows, 1].abs() < 0.999
        across = torch.where(sideways, p[:, 2], p[:, 0])
        above = p[:, 1] + half[:, 1]
        column = (across / 0.85 + 0.5) - torch.floor(across / 0.85 + 0.5) - 0.5
        row = above / 1.15 - torch.floor(above / 1.15)
        margin = (torch.where(sideways, half[:, 2], half[:, 0]) - across.abs()) > 0.18
        window = upright & margin & (column.abs() < 0.24) & (row > 0.38) & (row < 0.82) & (2 * half[:, 1] - above > 0.12)
        house = batch.class_index[solid[rows]] == ADE20K["house"]
        door = house & upright & ~sideways & (across.abs() < 0.24) & (above < 1.0)
        lit = colour.new_tensor([1.0, 0.85, 0.45])
        glass = torch.where(night[rows, None], lit, second[rows])
        painted = torch.where(window[:, None], glass, colour[rows])
        painted = torch.where(door[:, None], colour.new_tensor([0.30, 0.17, 0.09]), painted)
        colour = colour.index_copy(0, rows, painted)
        named = torch.where(door, ADE20K["door"], torch.where(window, ADE20K["window"], classes[rows]))
        classes = classes.index_copy(0, rows, named)
    return colour, classes


def _backdrop(batch: _Batch, origin: Tensor, direction: Tensor, scene: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The ground, or the inside of the room: distance (R,), what (R,), world normal (R, 3)."""
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
        what = torch.where(closer, _WALL - 2 * (axis == 1), what)  # the ceiling is -4
        inward = torch.zeros_like(direction)
        inward[:, axis] = -direction[:, axis].sign()
        normal = torch.where(closer[:, None], inward, normal)
    return nearest, what, normal


def _ground_colour(batch: _Batch, point: Tensor, t: Tensor, scene: Tensor) -> Tensor:
    """Ground, floor tiles, planks and the dashed line of a road; patterns fade with distance, or they would flicker."""
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
    d = direction / direction.norm(dim=1, keepdim=True)
    height = d[:, 1].clamp_min(0.0)
    blend = (height * 2.2).clamp_max(1.0).sqrt()[:, None]
    colour = batch.horizon[scene] * (1 - blend) + batch.zenith[scene] * blend
    phase = batch.phase[scene]
    reach = 1.0 / (height + 0.12)
    cloud = _noise(d[:, 0] * reach * 1.4 + phase[:, 0], d[:, 2] * reach * 1.4 + phase[:, 1])
    amount = ((cloud + 0.15) * 2.0).clamp(0, 1) * batch.clouds[scene] * (height * 6).clamp_max(1)
    return colour * (1 - amount[:, None]) + 0.97 * amount[:, None]


def _shade(batch: _Batch, origin: Tensor, direction: Tensor, scene: Tensor) -> dict[str, Tensor]:
    """Colour and truth for rays (R, 3)."""
    t, solid, local_normal = _trace(batch, origin, direction, scene)
    back_t, back_what, back_normal = _backdrop(batch, origin, direction, scene)
    is_solid = (solid >= 0) & (t < back_t)
    t = torch.where(is_solid, t, back_t)
    what = torch.where(is_solid, solid, back_what)
    point = origin + t.clamp_max(1e4)[:, None] * direction
    colour = torch.zeros_like(direction)
    normal = back_normal.clone()
    gloss = torch.zeros_like(t)
    classes = torch.full_like(what, ADE20K["sky"])
    things = torch.full_like(what, -1)

    rows = is_solid.nonzero()[:, 0]
    which = solid[rows]
    to_local = batch.to_local[which]
    local = torch.einsum("nij,nj->ni", to_local, point[rows] - batch.centre[which])
    world_normal = torch.einsum("nij,ni->nj", to_local, local_normal[rows])
    flowing = batch.smooth[which].nonzero()[:, 0]
    if len(flowing):  # lumps: weigh the normals of all spheres of the thing by how near their surfaces are
        s, thing = scene[rows[flowing]], batch.thing[which[flowing]]
        count = batch.count[s, thing]
        offset = torch.arange(int(count.sum()), device=s.device) - torch.repeat_interleave(count.cumsum(0) - count, count)
        other = torch.repeat_interleave(batch.start[s, thing], count) + offset
        owner = torch.repeat_interleave(torch.arange(len(flowing), device=s.device), count)
        q = torch.einsum("nij,nj->ni", batch.to_local[other], point[rows[flowing]][owner] - batch.centre[other])
        weight = torch.exp(-3.0 * ((q * q).sum(1) - 1.0)).clamp_max(1e3)
        gradient = torch.einsum("nij,ni->nj", batch.to_local[other], q) * weight[:, None]
        world_normal[flowing] = torch.zeros_like(world_normal[flowing]).index_add_(0, owner, gradient)
    normal[rows] = world_normal / world_normal.norm(dim=1, keepdim=True).clamp_min(1e-9)
    colour[rows], classes[rows] = _solid_colour(batch, which, local, batch.night[scene[rows]])
    gloss[rows] = batch.gloss[which]
    things[rows] = batch.thing[which]
    painted = torch.zeros_like(is_solid)
    painted[rows] = batch.named[which] & (classes[rows] == batch.class_index[which])

    ground = (what == _GROUND).nonzero()[:, 0]
    colour[ground] = _ground_colour(batch, point[ground], t[ground], scene[ground])
    classes[ground] = batch.ground_class[scene[ground]]
    on_wall = what == _WALL
    colour = torch.where(on_wall[:, None], batch.wall[scene], colour)
    classes = torch.where(on_wall, ADE20K["wall"], classes)
    on_ceiling = what == _WALL - 2
    colour = torch.where(on_ceiling[:, None], 0.93, colour)
    classes = torch.where(on_ceiling, ADE20K["ceiling"], classes)

    lit = what != _SKY
    indoors = batch.indoors[scene]
    light = batch.light[scene]
    towards = torch.where(indoors[:, None], light - point, light)
    distance = towards.norm(dim=1)
    unit = towards / distance[:, None]
    facing = (normal * unit).sum(1).clamp_min(0.0)
    shaded = (lit & (facing > 0)).nonzero()[:, 0]
    blocked, _, _ = _trace(batch, point[shaded] + normal[shaded] * _EPSILON * (1 + t[shaded, None]), towards[shaded], scene[shaded])
    visible = torch.zeros_like(t)
    visible[shaded] = (blocked > torch.where(indoors[shaded], 1.0, _FAR * 0.5)).float()
    falloff = torch.where(indoors, 1.25 / (1.0 + 0.04 * distance**2), 1.0)
    sky_side = (0.72 + 0.28 * normal[:, 1])[:, None]
    # Things darken the ground beneath them: the open sky they hide, from their bounding spheres.
    closed = torch.ones_like(t)
    for b, rows in enumerate(_slices(scene[ground], len(batch.sphere))):
        centre, radius = batch.sphere[b, :, :3], batch.sphere[b, :, 3].clamp_min(0)
        hidden = (radius / (torch.cdist(point[ground[rows]], centre) + 0.2)).clamp_max(1.0) ** 3
        closed[ground[rows]] = 1.0 - 0.45 * hidden.amax(1)
    direct = facing * visible * falloff
    view = -direction / direction.norm(dim=1, keepdim=True)
    mirror = 2 * (normal * unit).sum(1, keepdim=True) * normal - unit
    shine = gloss * visible * (mirror * view).sum(1).clamp_min(0) ** 28
    flat = batch.cartoon[scene]
    direct = torch.where(flat, (direct > 0.25).float() * 0.75, direct)
    sky_side = torch.where(flat[:, None], 0.95, sky_side)
    shine = torch.where(flat, (shine > 0.3).float() * 0.8, shine)
    result = colour * (batch.ambient[scene] * sky_side * closed[:, None] + batch.sun[scene] * direct[:, None])
    result = result + shine[:, None] * batch.sun[scene]
    haze = ((t - 7.0) / 40.0).clamp(0, 0.75)[:, None] * (~indoors)[:, None]
    result = result * (1 - haze) + batch.horizon[scene] * haze
    result = result.clamp(0, 1) ** _TONE
    above = (~lit).nonzero()[:, 0]
    result[above] = _sky_colour(batch, direction[above], scene[above])
    return {"colour": result.clamp(0, 1), "t": torch.where(lit, t, torch.inf), "normal": normal, "classes": classes,
            "things": things, "painted": painted, "what": what}  # fmt: skip


def _rays(batch: _Batch, scene: Tensor, x: Tensor, y: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Camera rays through picture positions x, y in pixels; directions have length 1 along the camera's axis."""
    u, v = (x + 0.5) * 2 / size - 1, 1 - (y + 0.5) * 2 / size
    focal = batch.focal[scene]
    local = torch.stack([u / focal, v / focal, torch.ones_like(u)], 1)
    return batch.position[scene], torch.einsum("ni,nij->nj", local, batch.rotation[scene])


def render(scenes: Sequence[Scene], size: int = 256, device: str | torch.device = "cpu") -> Truth:
    """Pictures of scenes, `size` pixels square, with their truth; the same scenes give the same pictures."""
    device = torch.device(device)
    batch = _Batch(scenes, device)
    n = len(scenes)
    scene, y, x = (g.reshape(-1) for g in torch.meshgrid(
        torch.arange(n, device=device), torch.arange(size, device=device), torch.arange(size, device=device),
        indexing="ij"))  # fmt: skip
    origin, direction = _rays(batch, scene, x.float(), y.float(), size)
    seen = _shade(batch, origin, direction, scene)
    colour = seen["colour"].view(n, size, size, 3)
    what = seen["what"].view(n, size, size)

    # Smooth the steps: pixels that differ from a neighbour are traced again at four points and averaged.
    rough = torch.zeros(n, size, size, dtype=torch.bool, device=device)
    for axis in (1, 2):
        a, b = colour.narrow(axis, 0, size - 1), colour.narrow(axis, 1, size - 1)
        step = (a - b).abs().amax(3) > _OUTLINE_CONTRAST
        rough.narrow(axis, 0, size - 1).logical_or_(step)
        rough.narrow(axis, 1, size - 1).logical_or_(step)
    again = rough.view(-1).nonzero()[:, 0]
    if len(again):
        each = again.repeat_interleave(4)
        dx = torch.tensor([-0.25, 0.25, -0.25, 0.25], device=device).repeat(len(again))
        dy = torch.tensor([-0.25, -0.25, 0.25, 0.25], device=device).repeat(len(again))
        o, d = _rays(batch, scene[each], x[each] + dx, y[each] + dy, size)
        mean = _shade(batch, o, d, scene[each])["colour"].view(-1, 4, 3).mean(1)
        colour = colour.reshape(-1, 3).index_copy(0, again, mean).view(n, size, size, 3)

    if bool(batch.cartoon.any()):  # cartoons have dark lines where one thing ends and another begins
        line = torch.zeros_like(rough)
        things = seen["things"].view(n, size, size)
        for axis in (1, 2):
            a, b = things.narrow(axis, 0, size - 1), things.narrow(axis, 1, size - 1)
            line.narrow(axis, 0, size - 1).logical_or_(a != b)
            line.narrow(axis, 1, size - 1).logical_or_(a != b)
        line &= batch.cartoon[:, None, None]
        colour = torch.where(line[..., None], colour * 0.15, colour)

    camera_normal = torch.einsum("bij,bhwj->bhwi", batch.rotation, seen["normal"].view(n, size, size, 3))
    camera_normal = camera_normal * camera_normal.new_tensor([1.0, 1.0, -1.0])
    depth = seen["t"].view(n, size, size)
    return Truth(
        (colour.clamp(0, 1) * 255 + 0.5).to(torch.uint8), depth, camera_normal,
        seen["classes"].view(n, size, size).to(torch.uint8),
        seen["things"].view(n, size, size).to(torch.int16), seen["painted"].view(n, size, size),
        [_keypoints(s, depth[b].cpu().numpy(), size) for b, s in enumerate(scenes)],
    )  # fmt: skip


def _keypoints(scene: Scene, depth: np.ndarray, size: int) -> np.ndarray:
    """Keypoints of the people of a scene, (people, 18, 3): x, y in pixels, and 1 where in the picture and not hidden."""
    people = [thing.keypoints for thing in scene.things if thing.keypoints is not None]
    found = np.zeros((len(people), 18, 3), np.float32)
    for k, points in enumerate(people):
        local = (points - scene.camera.position) @ scene.camera.rotation.T
        x = (local[:, 0] / local[:, 2] * scene.camera.focal + 1) * size / 2 - 0.5
        y = (1 - local[:, 1] / local[:, 2] * scene.camera.focal) * size / 2 - 0.5
        inside = (x >= 0) & (x <= size - 1) & (y >= 0) & (y <= size - 1)
        surface = depth[np.clip(y.round(), 0, size - 1).astype(int), np.clip(x.round(), 0, size - 1).astype(int)]
        # A joint lies inside its limb: up to a body's depth behind the surface still counts as seen.
        found[k] = np.stack([x, y, inside & (local[:, 2] - surface < 0.25)], 1)
    return found
