"""Layers of networks as plain NumPy, the slow and obvious way; float64, NHWC."""

import numpy as np


def conv(x, kernel, bias=0.0, *, stride=1, dilation=1, pad=0):
    """Cross-correlation of `[B,H,W,C]` with `[kh,kw,C,D]`; pad is one number or (rows, columns)."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    ph, pw = (pad, pad) if np.isscalar(pad) else pad
    x = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    kh, kw = kernel.shape[:2]
    h = (x.shape[1] - dilation * (kh - 1) - 1) // stride + 1
    w = (x.shape[2] - dilation * (kw - 1) - 1) // stride + 1
    out = np.zeros((x.shape[0], h, w, kernel.shape[3]))
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dilation, i * dilation + (h - 1) * stride + 1, stride)
            cols = slice(j * dilation, j * dilation + (w - 1) * stride + 1, stride)
            out += x[:, rows, cols] @ kernel[i, j]
    return out + np.asarray(bias, np.float64)


def transposed_conv(x, kernel, bias, *, stride, pad):
    """Spreads every input pixel times the kernel `[kh,kw,C,D]`; then cuts `pad` off every side."""
    B, h, w, _ = x.shape
    kh, kw, _, D = kernel.shape
    out = np.zeros((B, (h - 1) * stride + kh, (w - 1) * stride + kw, D))
    for i in range(h):
        for j in range(w):
            spread = np.einsum("bc,ijcd->bijd", x[:, i, j], kernel)
            out[:, i * stride : i * stride + kh, j * stride : j * stride + kw] += spread
    return out[:, pad:-pad, pad:-pad] + bias


def batch_norm(x, params, stats):
    scale = np.asarray(params["scale"], np.float64) / np.sqrt(np.float64(1e-5) + stats["var"])
    return (x - stats["mean"]) * scale + params["bias"]


def max_pool(x, window, stride, pad=0):
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=-np.inf)
    h = (x.shape[1] - window) // stride + 1
    w = (x.shape[2] - window) // stride + 1
    parts = [
        x[:, i : i + (h - 1) * stride + 1 : stride, j : j + (w - 1) * stride + 1 : stride]
        for i in range(window)
        for j in range(window)
    ]
    return np.max(parts, axis=0)


def resize(x, size):
    """Bilinear at pixel centres, edges clamped."""
    for axis, n_out in ((1, size[0]), (2, size[1])):
        n_in = x.shape[axis]
        at = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, n_in - 1)
        f = (at - low).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        x = np.take(x, low, axis) * (1 - f) + np.take(x, high, axis) * f
    return x


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def relu(x):
    return np.maximum(x, 0)
