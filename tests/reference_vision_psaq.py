"""PSAQ-ViT's patch-similarity entropy in plain loops, in float64."""

import math


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def head_mean(token: list[float], heads: int) -> list[float]:
    width = len(token) // heads
    return [sum(token[h * width + i] for h in range(heads)) / heads for i in range(width)]


def entropies(
    context: list[list[list[float]]], heads: int, special: int, nodes: int = 10, bandwidth: float = 0.01
) -> list[float]:
    """Of every image, from contexts [B][T][heads * d] whose first `special` tokens are no patches."""
    tables = []
    for image in context:
        patches = [head_mean(token, heads) for token in image[special:]]
        tables.append([cosine(a, b) for a in patches for b in patches])
    low, high = min(map(min, tables)), max(map(max, tables))
    at = [low + (high - low) * k / (nodes - 1) for k in range(nodes)]
    entropies = []
    for table in tables:
        terms = []
        for node in at:
            kernels = [math.exp(-(((node - g) / bandwidth) ** 2) / 2) for g in table]
            density = sum(kernels) / len(table) / (bandwidth * math.sqrt(2 * math.pi)) + 1e-4
            terms.append(-density * math.log(density))
        entropies.append(sum((terms[k] + terms[k + 1]) / 2 * (at[k + 1] - at[k]) for k in range(nodes - 1)))
    return entropies


def total_variation(images: list[list[list[list[float]]]]) -> float:
    """Sum of the four L2 norms of differences to the right, below, and both ways diagonally below: [B][C][H][W]."""
    total = 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        squares = 0.0
        for image in images:
            for channel in image:
                for y in range(len(channel) - down):
                    for x in range(len(channel[0])):
                        if 0 <= x + right < len(channel[0]):
                            squares += (channel[y + down][x + right] - channel[y][x]) ** 2
        total += math.sqrt(squares)
    return total
