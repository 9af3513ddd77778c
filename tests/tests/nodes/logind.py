"""Plays systemd-logind and systemd on a private bus: takes words on standard input, tells what it sees."""

import os
import sys

import dbus
import dbus.bus
import dbus.service
from dbus.mainloop.glib import DBusGMainLoop
from gi.repository import GLib

DBusGMainLoop(set_as_default=True)
bus = dbus.bus.BusConnection(sys.argv[1])
PROPERTIES = "org.freedesktop.DBus.Properties"
LOGIND = "org.freedesktop.login1.Manager"


def say(*words):
    print(*words, flush=True)


class Logind(dbus.service.Object):
    @dbus.service.method(LOGIND, in_signature="ssss", out_signature="h")
    def Inhibit(self, what, who, why, mode):
        ours, theirs = os.pipe()
        GLib.io_add_watch(ours, GLib.IO_HUP, lambda *_: say("released"))
        lock = dbus.types.UnixFd(theirs)
        os.close(theirs)
        say("inhibited", what, mode)
        return lock

    @dbus.service.method(PROPERTIES, in_signature="ss", out_signature="v")
    def Get(self, interface, name):
        return dbus.UInt64(60_000_000, variant_level=1)

    @dbus.service.signal(LOGIND, signature="b")
    def PrepareForShutdown(self, begins):
        pass


class Systemd(dbus.service.Object):
    state = "running"

    @dbus.service.method(PROPERTIES, in_signature="ss", out_signature="v")
    def Get(self, interface, name):
        return dbus.String(self.state, variant_level=1)


names = [dbus.service.BusName(name, bus) for name in ("org.freedesktop.login1", "org.freedesktop.systemd1")]
logind = Logind(bus, "/org/freedesktop/login1")
systemd = Systemd(bus, "/org/freedesktop/systemd1")
loop = GLib.MainLoop()


def heed(*_):
    word = sys.stdin.readline().strip()
    if word in ("shutdown", "cancel"):
        logind.PrepareForShutdown(word == "shutdown")
    elif word:
        systemd.state = word
    else:
        loop.quit()
    return True


GLib.io_add_watch(sys.stdin.fileno(), GLib.IO_IN | GLib.IO_HUP, heed)
say("ready")
loop.run()
