"""A desk on the guest's own screen: a clock, a terminal to type into, and a pointer that follows the mouse."""

from vsp_vsc.video.terminal import Terminal

INK, PAPER, BAR, BACK, RED = 0xE0E8F0, 0x101820, 0x305878, 0x507890, 0xF06040
ARROW = ("#", "##", "#.#", "#..#", "#...#", "#....#", "#.....#", "#......#", "#..#####", "#.##", "##", "#")
HELP = "\nsize 640 480   the screen has another size\nreset          begin again\n\ndesk> "


class Desk:
    """What is on the screen. Who draws says `with desk:`, and the pointer is out of the way."""

    def __init__(self, guest, screen):
        self.guest, self.screen = guest, screen
        self.furnish()

    def furnish(self):
        """Everything that stays, and the terminal in its frame."""
        screen, columns, rows = self.screen, self.screen.width // 8 - 16, self.screen.height // 16 - 8
        screen.fill(0, 0, screen.width, screen.height, BACK)
        screen.fill(0, 0, screen.width, 24, BAR)
        screen.text(8, 4, f"Partita: {self.guest.name}", INK, BAR)
        for row in range(-1, rows + 1):
            left, line, right = "┌─┐" if row < 0 else "└─┘" if row == rows else "│ │"
            screen.text(48, 64 + 16 * row, left + line * (columns + 2) + right, INK, PAPER)
        self.terminal = Terminal(screen, 64, 64, columns, rows, colour=INK, background=PAPER)
        self.pointer = screen.width // 2, screen.height // 2
        self.__exit__()

    def __enter__(self):
        self.screen.blit(*self.pointer, 8, 12, self.hidden)

    def __exit__(self, *error):
        self.hidden = self.screen.read(*self.pointer, 8, 12)
        arrow = [self.hidden[at : at + 4] for at in range(0, len(self.hidden), 4)]
        for place, mark in enumerate("".join(row.ljust(8) for row in ARROW)):
            arrow[place] = {"#": bytes(4), ".": b"\xff\xff\xff\x00"}.get(mark, arrow[place])  # B, G, R, 0
        self.screen.blit(*self.pointer, 8, 12, b"".join(arrow))

    def write(self, text):
        """Into the terminal."""
        with self:
            self.terminal.write(text)


async def clock(guest, desk):
    while True:
        with desk:
            desk.screen.text(desk.screen.width - 72, 4, f"{guest.time():8.1f}", INK, BAR)
        await desk.screen.flush()  # what was typed and pointed at meanwhile goes along
        await guest.sleep(0.05)


async def follow(mouse, desk):
    async for report in mouse:
        with desk:
            desk.pointer = report.at(desk.screen.width, desk.screen.height)
            if report.buttons:
                desk.screen.fill(*desk.pointer, 4, 4, RED)


async def talk(guest, keyboard, desk):
    while True:
        desk.write(HELP)
        match (await keyboard.read_line(desk.write)).split():
            case ["reset"]:
                await guest.reset()
            case ["size", width, height] if f"({width}, {height})" in str(desk.screen.resolutions):
                await desk.screen.set_mode(int(width), int(height))
                desk.furnish()


async def main(guest):
    desk = Desk(guest, await guest.screen())
    print(f"the screen has {desk.screen.width}x{desk.screen.height} pixels")
    guest.start_soon(clock, guest, desk)
    guest.start_soon(follow, await guest.mouse(), desk)
    guest.start_soon(talk, guest, await guest.keyboard(), desk)
    await guest.sleep(guest.args["seconds"])
