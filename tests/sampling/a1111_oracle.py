"""What AUTOMATIC1111's web UI makes of a prompt, written after its description and behaviour, with transformers' own
tokenizers and text encoders: a chunk's states, the weights of its tokens, and its mean.

Sources: its wiki, "Attention/emphasis" and "Infinite prompt length", and `modules/sd_hijack_clip.py`.
"""

import torch

ROOM, NEAR = 75, 20


def read_chunks(pieces, tokenizer):
    """Chunks of (id, weight) from pieces `(text, weight)`; None ends a chunk."""
    (comma,) = tokenizer(",", add_special_tokens=False).input_ids
    done, chunk, comma_at = [], [], None
    for piece in pieces:
        if piece is None:
            done.append(chunk)
            chunk, comma_at = [], None
            continue
        text, weight = piece
        for one in tokenizer(text, add_special_tokens=False).input_ids:
            if one == comma:
                comma_at = len(chunk)
            elif len(chunk) == ROOM and comma_at is not None and ROOM - comma_at <= NEAR:
                moved = chunk[comma_at + 1 :]
                done.append(chunk[: comma_at + 1])
                chunk, comma_at = moved, None
            if len(chunk) == ROOM:
                done.append(chunk)
                chunk, comma_at = [], None
            chunk.append((one, weight))
    return [*done, chunk] if chunk or not done else done


def rows_of(chunk, tokenizer):
    """Ids and weights of a chunk, with start, end and padding."""
    padding = [(tokenizer.pad_token_id, 1.0)] * (ROOM - len(chunk))
    row = [(tokenizer.bos_token_id, 1.0), *chunk, (tokenizer.eos_token_id, 1.0), *padding]
    return torch.tensor([[one for one, _ in row]]), torch.tensor([[weight for _, weight in row]])


def weighed(states, weights):
    """States times weights, brought back to their mean."""
    scaled = states * weights.unsqueeze(-1)
    return scaled * (states.mean() / scaled.mean())


@torch.no_grad()
def embed(pieces, tokenizer, states_of):
    """The states of all chunks joined, [1, 77 * chunks, width]; `states_of` runs a text encoder on ids."""
    found = [rows_of(chunk, tokenizer) for chunk in read_chunks(pieces, tokenizer)]
    return torch.cat([weighed(states_of(ids), weights) for ids, weights in found], dim=1)
