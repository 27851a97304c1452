"""Loss functions: pure functions of logits, targets and pixel weights, computed in float32."""
