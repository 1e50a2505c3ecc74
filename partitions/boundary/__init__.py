"""The boundary as JSON lines: whoever is at the other end is the guest of one VM. Root side.

`protocol` is what may be said, `backend` puts the speaker in the place of virtual processors, `driver` is the session,
`stdio` its way in and out.
"""
