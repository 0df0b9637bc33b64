"""The parameters that the tasks' gradients are taken with respect to, as each step's graph has them."""

from collections.abc import Iterable

from torch import nn

from ..torch_internals import COMPILED_PREFIX


class SharedParameters:
    """The parameters of a module, or parameters given as such.

    A module is asked anew at each step, so that parameters which were replaced or frozen meanwhile don't count. One
    that FSDP shards is asked in the midst of its forward pass, when its parameters are whole.

    Args:
        wrt: a module, a parameter, or parameters.

    Raises:
        TypeError: ``wrt`` is something else, or holds sharded parameters in place of their module.
        ValueError: there is nothing to train.
    """

    def __init__(self, wrt: nn.Module | nn.Parameter | Iterable[nn.Parameter]) -> None:
        self._given: tuple[nn.Parameter, ...] = ()
        self._module: nn.Module | None = None
        self._whole: dict[tuple[nn.Module, str], nn.Parameter] = {}
        """A sharded module's parameters, as its last forward pass used them."""
        self.is_sharded = False
        """Whether FSDP shards the parameters."""
        if not isinstance(wrt, nn.Module):
            self._given = _checked(wrt)
            return
        self._module = wrt
        if not any(parameter.requires_grad for parameter in wrt.parameters()):
            raise ValueError(
                f"wrt is of type {type(wrt).__name__}, without a parameter that requires grad: give a layer that has "
                "one, such as the one before it"
            )
        self.is_sharded = any(is_sharded(parameter) for parameter in wrt.parameters())
        if self.is_sharded:
            for module in wrt.modules():
                module.register_forward_pre_hook(self._see)

    @property
    def are_listed(self) -> bool:
        """Whether parameters were given, not their module."""
        return self._module is None

    def now(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters.

        Raises:
            RuntimeError: FSDP sharded the module after the balancer was made.
        """
        if self._module is None or self.is_sharded:
            return tuple(self.by_name().values())
        return self._not_sharded(parameter for parameter in self._module.parameters() if parameter.requires_grad)

    def by_name(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained, by a name that stays with each of them."""
        if self._module is None:
            return {str(k): parameter for k, parameter in enumerate(self._given) if parameter.requires_grad}
        if self.is_sharded:
            places = (
                (f"{prefix}.{name}", self._whole.get((module, name), parameter))
                for prefix, module in self._module.named_modules()
                for name, parameter in module.named_parameters(recurse=False)
            )
            return {name: parameter for name, parameter in places if parameter.requires_grad}
        named = self._module.named_parameters()
        # A part that was compiled meanwhile has the same parameters under other names.
        parameters = {name.replace(COMPILED_PREFIX, ""): each for name, each in named if each.requires_grad}
        self._not_sharded(parameters.values())
        return parameters

    @staticmethod
    def _not_sharded(parameters: Iterable[nn.Parameter]) -> tuple[nn.Parameter, ...]:
        """Return parameters of a module that was whole when the balancer was made."""
        found = tuple(parameters)
        if any(map(is_sharded, found)):
            raise RuntimeError(
                "the parameters of wrt were sharded after the balancer was made: call fully_shard first, and make the "
                "balancer for the sharded model"
            )
        return found

    def _see(self, module: nn.Module, _: object) -> None:
        """Keep the parameters that are whole now: FSDP gathers those of a module together with its children's.

        A child's may be used without a call of the child, as those of an attention's output layer are.
        """
        for owner in module.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                if not is_sharded(parameter):
                    self._whole[owner, name] = parameter


def is_sharded(parameter: nn.Parameter) -> bool:
    """Return whether a parameter is a DTensor: this rank then holds a part of it."""
    return type(parameter) is not nn.Parameter and hasattr(parameter, "device_mesh")  # a DTensor is of its own type


def _checked(wrt: nn.Parameter | Iterable[nn.Parameter]) -> tuple[nn.Parameter, ...]:
    if not isinstance(wrt, Iterable) or isinstance(wrt, str):
        raise TypeError(f"wrt is of type {type(wrt).__name__}; expected a module, parameters or None")
    if isinstance(wrt, set | frozenset):
        raise TypeError("wrt is a set, whose order changes from run to run, and state may go by it: give a list")
    parameters = (wrt,) if isinstance(wrt, nn.Parameter) else tuple(dict.fromkeys(wrt))
    for parameter in parameters:
        if not isinstance(parameter, nn.Parameter):
            raise TypeError(f"wrt holds an object of type {type(parameter).__name__}; expected parameters of the model")
        if not parameter.requires_grad:
            raise ValueError(f"wrt holds a parameter of shape {tuple(parameter.shape)} that does not require grad")
        if is_sharded(parameter):
            raise TypeError("wrt holds a sharded parameter (a DTensor): give the module that it belongs to instead")
    if not parameters:
        raise ValueError("wrt holds no parameters")
    return parameters
