package sshd

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"strconv"

	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/protocol"
)

// Displays that sessions get are numbered as OpenSSH does.
const (
	firstDisplay = 10
	lastDisplay  = 59
	x11Port      = 6000 // of display 0
)

// lendDisplay listens where the programs of the session look for the client's
// display. Its cookie is one that the client has made up for us, and checks.
func (ses *session) lendDisplay(ctx context.Context, open *protocol.SessionOpen, x x11) error {
	cookie, err := hex.DecodeString(x.Cookie)
	if err != nil {
		return fmt.Errorf("read the display's cookie: %w", err)
	}
	s := ses.server
	for n := firstDisplay; n <= lastDisplay; n++ {
		var stream Stream
		at := protocol.Target{Network: protocol.NetworkTCP, Address: net.JoinHostPort("127.0.0.1", strconv.Itoa(x11Port+n))}
		if stream, _, err = s.listen(ctx, at); err != nil {
			continue // somebody else's
		}
		open.Env["DISPLAY"] = fmt.Sprintf("localhost:%d.%d", n, x.Screen)
		open.X11 = &protocol.X11{Display: uint16(n), Protocol: x.Proto, Cookie: cookie}
		context.AfterFunc(ctx, func() { stream.Close() }) // with the session
		go s.takeArrivals(ctx, stream, func(a protocol.Accepted) (string, []byte) {
			if x.Single {
				stream.Close()
			}
			host, port := hostPort(a.Remote)
			return "x11", ssh.Marshal(struct {
				Host string
				Port uint32
			}{host, port})
		})
		return nil
	}
	return err
}
