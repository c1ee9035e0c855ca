"""Layers that the made-up denoisers have in common."""

import torch


class Time(torch.nn.Module):
    """A timestep as a vector."""

    def __init__(self, width):
        super().__init__()
        self.linear = torch.nn.Linear(8, width)

    def forward(self, timestep):
        angles = timestep.reshape(-1, 1).float() / 1000 * torch.arange(1, 5, dtype=torch.float32)
        return self.linear(torch.cat([angles.sin(), angles.cos()], -1).to(self.linear.weight.dtype))


class Reads(torch.nn.Module):
    """Each place of a picture reads the prompt: [rows, width, height, width] and [rows, length, states]."""

    def __init__(self, width, states):
        super().__init__()
        self.to_q = torch.nn.Linear(width, width)
        self.to_k = torch.nn.Linear(states, width)
        self.to_v = torch.nn.Linear(states, width)
        self.to_out = torch.nn.Linear(width, width)

    def forward(self, hidden, states):
        places = hidden.flatten(2).transpose(1, 2)
        heads = (each.unsqueeze(1) for each in (self.to_q(places), self.to_k(states), self.to_v(states)))
        found = torch.nn.functional.scaled_dot_product_attention(*heads).squeeze(1)
        return hidden + self.to_out(found).transpose(1, 2).reshape(hidden.shape)
